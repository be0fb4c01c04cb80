"""Patches against `torch.nn.functional.unfold`, and convolutions of any number of axes against the layer itself."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nngeo_generators.rules.patches import cut_patches, padded_input

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch, of even kernels

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride": {"stride": (2, 3)},
    "dilation": {"dilation": (2, 1)},
    "stride-dilation": {"stride": 2, "dilation": (1, 2)},
    "padding": {"padding": (2, 1)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_patches_are_those_of_unfold(options: dict[str, Any], groups: int) -> None:
    """F.unfold gives (n, channels * pixels, s), channels first, which is the order of the weight."""
    module = nn.Conv2d(4, 4, (3, 2), groups=groups, **options)
    x = torch.randn(3, 4, 7, 6)
    expected = F.unfold(x, (3, 2), module.dilation, module.padding, module.stride)
    found = cut_patches(padded_input(module, x), groups, module.kernel_size, module.stride, module.dilation)
    assert found.equal(expected.unflatten(1, (groups, -1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["same", "valid", 1])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_layer_is_a_product_of_patches_and_weight(mode: str, padding: str | int, axes: int) -> None:
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    module = kind(4, 6, (3, 2, 2)[:axes], padding=padding, padding_mode=mode, groups=2, dtype=torch.float64)
    x = torch.randn(2, 4, *(4, 5, 3)[:axes], dtype=torch.float64)
    patches = cut_patches(padded_input(module, x), 2, module.kernel_size, module.stride, module.dilation)
    weight, bias = module.weight.reshape(2, 3, -1), module.bias.view(2, 3)
    output = torch.einsum("nsqa,qga->nqgs", patches, weight) + bias.unsqueeze(2)
    assert torch.allclose(output.flatten(1), module(x).flatten(1), atol=1e-12, rtol=0)


def test_an_even_kernel_with_same_padding_has_the_odd_pixel_behind() -> None:
    module = nn.Conv1d(1, 1, 4, padding="same")
    assert padded_input(module, torch.ones(1, 1, 2)).flatten().tolist() == [0, 1, 1, 0, 0]


def test_without_padding_the_input_is_not_copied() -> None:
    x = torch.ones(1, 1, 2, 2)
    assert padded_input(nn.Conv2d(1, 1, 2), x) is x


def test_patches_lie_in_memory_as_one_matrix_of_examples_and_positions_for_each_group() -> None:
    patches = cut_patches(torch.randn(3, 4, 6, 6), 2, (3, 3), (1, 1), (1, 1))
    assert patches.shape == (3, 16, 2, 18)
    assert patches.permute(2, 3, 0, 1).is_contiguous()
