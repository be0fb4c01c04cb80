"""The rule of transposed convolutions, on fixed cases and on any geometry."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nngeo_core import Call, ConvTranspose2dLayer, KroneckerJacobian, UnsupportedLayerError
from nngeo_core.testing import RuleCase, RuleContract
from nngeo_core.testing.jacobian_contract import CONTRACTIONS, agree
from nngeo_core.testing.oracles import fisher, relative_error
from nngeo_generators.rules.conv_transpose import ConvTransposeRule

KINDS: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def conv(shape: tuple[int, ...] = (3, 4, 3, 2), **options: Any) -> Callable[[], RuleCase]:
    def build() -> RuleCase:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            kernel = (3, 2, 2)[: len(shape) - 2]
            module = KINDS[len(kernel)](4, **{"out_channels": 2, "kernel_size": kernel, **options}).double()
            return RuleCase(module, torch.randn(shape, dtype=torch.float64))

    return build


class TestConvTransposeRule(RuleContract):
    rule = ConvTransposeRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        return {
            "plain": conv(),
            "no-bias": conv(bias=False),
            "one-pixel-kernel": conv(kernel_size=1),
            "one-pixel-image": conv((3, 4, 1, 1)),
            "stride": conv(stride=(2, 3)),
            "stride-wider-than-the-kernel": conv(kernel_size=1, stride=2),
            "padding": conv(padding=(2, 1)),
            "padding-wider-than-the-kernel": conv((3, 4, 5, 4), kernel_size=1, padding=1),
            "output-padding": conv(stride=2, output_padding=1, padding=1),
            "dilation": conv(dilation=(2, 3), output_padding=(1, 2)),
            "groups": conv(out_channels=6, groups=2),
            "depthwise": conv(out_channels=8, groups=4),
            "sequence": conv((3, 4, 3), stride=2, padding=1),
            "film": conv((2, 4, 2, 1, 2), stride=(1, 2, 2), groups=2, output_padding=(0, 1, 0)),
        }


@st.composite
def geometries(draw: st.DrawFn) -> RuleCase:
    """A transposed convolution and images that it fits."""
    axes, groups = draw(st.sampled_from([1, 2, 2, 3])), draw(st.integers(1, 3))

    def sides(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    kernel, stride, dilation, more = sides(1, 3 if axes < 3 else 2), sides(1, 3), sides(1, 3), sides(0, 2)
    extra = tuple(min(p, max(s, d) - 1) for p, s, d in zip(more, stride, dilation, strict=True))
    image = sides(1, 4 if axes < 3 else 2)
    wide = zip(image, kernel, stride, dilation, extra, strict=True)
    full = [(length - 1) * s + d * (k - 1) + p + 1 for length, k, s, d, p in wide]
    padding = tuple(draw(st.integers(0, min(3, (side - 1) // 2))) for side in full)
    inputs, outputs, bias = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)), draw(st.booleans())
    module = KINDS[axes](inputs, outputs, kernel, stride, padding, extra, groups, bias, dilation, dtype=torch.float64)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    x = torch.randn(draw(st.integers(1, 3)), inputs, *image, dtype=torch.float64, generator=generator)
    return RuleCase(module, x)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(geometries())
def test_any_geometry_equals_autograd(case: RuleCase) -> None:
    module = case.module
    output = module(*case.call.arguments).detach()
    gradients = torch.randn((2, *output.shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = tuple(name for name, _ in module.named_parameters())
    found = ConvTransposeRule().jacobian(module, case.call, gradients, names)
    agree(found.to_dense(), case.autograd(gradients, names), "to_dense")
    for check in CONTRACTIONS.values():
        check(found, found)


def test_patches_and_weight_make_the_output() -> None:
    module, x = nn.ConvTranspose2d(4, 6, (3, 2), 2, 1, groups=2, bias=False), torch.randn(2, 4, 3, 4)
    output = module(x).detach()
    found = ConvTransposeRule().jacobian(module, Call((x,), {}, "up"), torch.zeros(1, *output.shape), ("weight",))
    assert isinstance(found, KroneckerJacobian)
    weight, _ = found.layout.unpack(module.weight.detach().flatten())
    expected = output.flatten(2).unflatten(1, (2, 3)).permute(0, 3, 1, 2)  # n, s, q, G
    assert relative_error(torch.einsum("nsqa,qga->nsqg", found.a, weight), expected) <= 1e-6


@pytest.mark.parametrize("size", [(5, 7), (6, 8)])
def test_the_size_of_the_output_may_be_given_at_the_call(size: tuple[int, int]) -> None:
    module, x = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1).double(), torch.randn(2, 2, 3, 4, dtype=torch.float64)
    gradients = torch.randn(1, 2, 3, *size, dtype=torch.float64)
    found = ConvTransposeRule().jacobian(module, Call((x, list(size)), {}, "up"), gradients, ("weight", "bias"))
    expected = torch.autograd.grad(module(x, list(size)), list(module.parameters()), gradients[0])
    agree(found.vjp(torch.ones(1, 2, dtype=torch.float64)), torch.cat([part.flatten() for part in expected]), "vjp")


def test_records() -> None:
    rule = ConvTransposeRule()
    assert rule.describe(nn.ConvTranspose2d(4, 6, (3, 5), groups=2)) == ConvTranspose2dLayer(4, 6, (3, 5), groups=2)
    described = rule.describe(nn.ConvTranspose1d(4, 6, 3)).parameter_shapes()
    assert described == {"weight": (4, 6, 3), "bias": (6,)}


def test_one_image_is_refused() -> None:
    call = Call((torch.ones(1, 4),), {}, "up")
    with pytest.raises(UnsupportedLayerError) as error:
        ConvTransposeRule().jacobian(nn.ConvTranspose1d(1, 1, 2), call, torch.ones(1, 1, 5), ("weight",))
    assert str(error.value) == "'up' was called on one image of shape (1, 4); expected (n, channels, length)"


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_fisher_of_a_small_model(dense_fisher: Callable[..., Tensor], axes: int) -> None:
    layers = [KINDS[axes](4, 2, 2, 2, groups=2), nn.Tanh(), KINDS[axes](2, 1, 2, output_padding=0), nn.Flatten()]
    model = nn.Sequential(*layers, nn.LazyLinear(3)).double()
    x = torch.randn(4, 4, *[2] * axes, dtype=torch.float64)
    model(x)
    expected = fisher(model, x, [name for name, _ in model.named_parameters()], "classif_logits")
    assert relative_error(dense_fisher(model, x, "classif_logits"), expected) <= 1e-10
