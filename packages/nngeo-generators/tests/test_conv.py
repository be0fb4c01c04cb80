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
from nngeo_generators.rules.conv import Conv2dRule

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch, of even kernels

Change = Callable[[Tensor], Tensor]


def conv(shape: tuple[int, ...] = (3, 4, 5, 4), change: Change = torch.clone, **options: Any) -> Callable[[], RuleCase]:
    def build() -> RuleCase:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = nn.Conv2d(4, **{"out_channels": 2, "kernel_size": (3, 2), **options}).double()
            return RuleCase(module, change(torch.randn(shape, dtype=torch.float64)))

    return build


class TestConv2dRule(RuleContract):
    rule = Conv2dRule()

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
            "flipped-and-cut": conv((6, 4, 7, 8), change=lambda x: x.flip(3)[::2, :, 1:6, ::2]),
        }


@st.composite
def geometries(draw: st.DrawFn) -> RuleCase:
    """A convolution and images that it fits, in any memory layout."""
    groups, mode = draw(st.integers(1, 3)), draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.sampled_from(["same", "valid", (0, 0), (1, 0), (1, 2), (2, 2)]))
    stride = (1, 1) if padding == "same" else draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    image = [draw(st.integers(max(side, 3 * (mode != "zeros")), 6)) for side in reach]
    module = nn.Conv2d(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        draw(st.booleans()),
        mode,
        dtype=torch.float64,
    )
    n, order = draw(st.integers(1, 3)), draw(st.permutations(range(4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    shape = (n, module.in_channels, *image)
    stored = torch.randn([shape[axis] for axis in order], dtype=torch.float64, generator=generator)
    return RuleCase(module, stored.permute(*(order.index(axis) for axis in range(4))))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(geometries())
def test_any_geometry_equals_autograd(case: RuleCase) -> None:
    module = case.module
    output = module(*case.call.arguments).detach()
    gradients = torch.randn((2, *output.shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = tuple(name for name, _ in module.named_parameters())
    found = Conv2dRule().jacobian(module, case.call, gradients, names)
    agree(found.to_dense(), case.autograd(gradients, names), "to_dense")
    for check in CONTRACTIONS.values():
        check(found, found)


def test_every_group_is_one_structure() -> None:
    module, x = nn.Conv2d(512, 512, 3, groups=512), torch.randn(2, 512, 4, 4)
    found = Conv2dRule().jacobian(module, Call((x,), {}, "conv"), torch.randn(3, 2, 512, 2, 2), ("weight", "bias"))
    assert isinstance(found, KroneckerJacobian)
    assert (found.a.shape, found.g.shape) == ((2, 4, 512, 9), (3, 2, 4, 512, 1))


def test_patches_are_cut_once_for_all_slices_of_directions() -> None:
    module, call = nn.Conv2d(2, 3, 2), Call((torch.randn(2, 2, 4, 4),), {}, "conv")
    first, second = (
        Conv2dRule().jacobian(module, call, torch.randn(3, 2, 3, 3, 3), ("weight", "bias")) for _ in range(2)
    )
    assert isinstance(first, KroneckerJacobian) and isinstance(second, KroneckerJacobian)
    assert first.a.data_ptr() == second.a.data_ptr()


def test_one_image_is_refused() -> None:
    call = Call((torch.ones(1, 4, 5),), {}, "conv")
    with pytest.raises(UnsupportedLayerError) as error:
        Conv2dRule().jacobian(nn.Conv2d(1, 1, 2), call, torch.ones(2, 1, 3, 4), ("weight",))
    assert str(error.value) == (
        "'conv' was called on one image of shape (1, 4, 5); expected (n, channels, height, width)"
    )
