"""The rule of convolutions, on fixed cases and on any geometry."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nngeo_core import Call, KroneckerJacobian, UnsupportedLayerError
from nngeo_core.testing import RuleCase, RuleContract
from nngeo_core.testing.jacobian_contract import CONTRACTIONS, agree
from nngeo_core.testing.oracles import fisher, relative_error
from nngeo_generators.rules.conv import ConvRule

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch, of even kernels

Change = Callable[[Tensor], Tensor]


KINDS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def conv(shape: tuple[int, ...] = (3, 4, 5, 4), change: Change = torch.clone, **options: Any) -> Callable[[], RuleCase]:
    axes = len(shape) - 2

    def build() -> RuleCase:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = KINDS[axes](4, **{"out_channels": 2, "kernel_size": (3, 2, 2)[:axes], **options}).double()
            return RuleCase(module, change(torch.randn(shape, dtype=torch.float64)))

    return build


class TestConvRule(RuleContract):
    rule = ConvRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        return {
            "plain": conv(),
            "no-bias": conv(bias=False),
            "one-pixel-kernel": conv(kernel_size=1),
            "one-position": conv((3, 4, 3, 2)),
            "stride-padding": conv(stride=(2, 1), padding=(2, 1)),
            "dilation": conv(dilation=(2, 3), padding=1),
            "groups": conv(groups=2),
            "depthwise": conv(out_channels=8, groups=4),
            "same": conv(padding="same", dilation=(1, 2)),
            "reflect": conv(padding=(2, 1), padding_mode="reflect", stride=2),
            "circular-same": conv(padding="same", padding_mode="circular", groups=2),
            "channels-last": conv(change=lambda x: x.to(memory_format=torch.channels_last)),
            "transposed": conv(change=lambda x: x.transpose(2, 3)[..., :5, :4], shape=(3, 4, 5, 5)),
            "expanded": conv((1, 4, 4, 3), change=lambda x: x.expand(3, -1, -1, -1)),
            "sequence": conv((3, 4, 6)),
            "sequence-causal-groups": conv((3, 4, 6), padding=2, dilation=2, groups=2, bias=False),
            "sequence-circular-same": conv((3, 4, 6), padding="same", padding_mode="circular"),
            "film": conv((2, 4, 3, 4, 3)),
            "film-all": conv(
                (2, 4, 4, 4, 3),
                stride=(1, 2, 1),
                padding=(2, 1, 1),
                padding_mode="replicate",
                dilation=(1, 1, 2),
                groups=4,
                out_channels=4,
            ),
            "flipped-and-cut": conv((6, 4, 7, 8), change=lambda x: x.flip(3)[::2, :, 1:6, ::2]),
        }


@st.composite
def geometries(draw: st.DrawFn) -> RuleCase:
    """A convolution and images that it fits, in any memory layout."""
    groups, mode = draw(st.integers(1, 3)), draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    axes = draw(st.sampled_from([1, 2, 2, 3]))

    def sides(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    kernel, dilation = sides(1, 3 if axes < 3 else 2), sides(1, 2)
    padding = draw(st.sampled_from(["same", "valid", sides(0, 2)]))
    stride = (1,) * axes if padding == "same" else sides(1, 3)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    image = [draw(st.integers(max(side, 3 * (mode != "zeros")), 6 if axes < 3 else 4)) for side in reach]
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    bias = draw(st.booleans())
    kind: Any = KINDS[axes]
    module = kind(inputs, outputs, kernel, stride, padding, dilation, groups, bias, mode, dtype=torch.float64)
    shape, order = (draw(st.integers(1, 3)), inputs, *image), draw(st.permutations(range(axes + 2)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    stored = torch.randn([shape[axis] for axis in order], dtype=torch.float64, generator=generator)
    return RuleCase(module, stored.permute(*(order.index(axis) for axis in range(axes + 2))))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(geometries())
def test_any_geometry_equals_autograd(case: RuleCase) -> None:
    module = case.module
    output = module(*case.call.arguments).detach()
    gradients = torch.randn((2, *output.shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = tuple(name for name, _ in module.named_parameters())
    found = ConvRule().jacobian(module, case.call, gradients, names)
    agree(found.to_dense(), case.autograd(gradients, names), "to_dense")
    for check in CONTRACTIONS.values():
        check(found, found)


def test_every_group_is_one_structure() -> None:
    module, x = nn.Conv2d(512, 512, 3, groups=512), torch.randn(2, 512, 4, 4)
    found = ConvRule().jacobian(module, Call((x,), {}, "conv"), torch.randn(3, 2, 512, 2, 2), ("weight", "bias"))
    assert isinstance(found, KroneckerJacobian)
    assert (found.a.shape, found.g.shape) == ((2, 4, 512, 9), (3, 2, 4, 512, 1))


def test_patches_are_cut_once_for_all_slices_of_directions() -> None:
    module, call = nn.Conv2d(2, 3, 2), Call((torch.randn(2, 2, 4, 4),), {}, "conv")
    first, second = (
        ConvRule().jacobian(module, call, torch.randn(3, 2, 3, 3, 3), ("weight", "bias")) for _ in range(2)
    )
    assert isinstance(first, KroneckerJacobian) and isinstance(second, KroneckerJacobian)
    assert first.a.data_ptr() == second.a.data_ptr()


def test_one_image_is_refused() -> None:
    call = Call((torch.ones(1, 4, 5),), {}, "conv")
    with pytest.raises(UnsupportedLayerError) as error:
        ConvRule().jacobian(nn.Conv2d(1, 1, 2), call, torch.ones(2, 1, 3, 4), ("weight",))
    assert str(error.value) == (
        "'conv' was called on one image of shape (1, 4, 5); expected (n, channels, height, width)"
    )


@pytest.mark.parametrize(("kind", "axes"), [(nn.Conv1d, "length"), (nn.Conv3d, "depth, height, width")])
def test_what_was_expected_is_said_for_each_number_of_axes(kind: Any, axes: str) -> None:
    module, x = kind(1, 1, 1), torch.ones([1] * (1 + len(axes.split(","))))
    with pytest.raises(UnsupportedLayerError, match=rf"expected \(n, channels, {axes}\)"):
        ConvRule().jacobian(module, Call((x,), {}, "conv"), torch.ones(1, *x.shape), ("weight",))


@pytest.mark.parametrize("axes", [1, 3])
def test_fisher_of_a_small_model(dense_fisher: Callable[..., Tensor], axes: int) -> None:
    convolution: Any = KINDS[axes]
    model = nn.Sequential(convolution(2, 4, 2, padding=1, groups=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    x = torch.randn(4, 2, *[3] * axes, dtype=torch.float64)
    model(x)
    expected = fisher(model, x, [name for name, _ in model.named_parameters()], "classif_logits")
    assert relative_error(dense_fisher(model, x, "classif_logits"), expected) <= 1e-10
