"""Euclidean norms of numbers whose squares leave the range of their dtype."""

import pytest
import torch

from nngeo_core.linear_algebra.norms import euclidean_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-37, 1e-24, 1.0, 1e24, 1e37])
def test_any_scale(scale: float, dtype: torch.dtype) -> None:
    tensor = scale * torch.randn(2, 3, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    wide = tensor.double() * 1e-20 if scale > 1 else tensor.double() * 1e20
    for dim in (None, 1, (1, 2)):
        for keepdim in (False, True):
            expected = torch.linalg.vector_norm(wide, dim=dim, keepdim=keepdim)
            found = euclidean_norm(tensor, dim, keepdim)
            assert (found.dtype, found.shape) == (dtype, expected.shape)
            assert torch.allclose(found.double(), expected / (1e-20 if scale > 1 else 1e20), rtol=1e-6, atol=0)


def test_nothing_and_infinity() -> None:
    assert euclidean_norm(torch.ones(0, 3)) == 0
    assert euclidean_norm(torch.ones(0, 3), 1).shape == (0,)
    assert euclidean_norm(torch.tensor([float("-inf"), 1.0])) == float("inf")
    assert euclidean_norm(torch.tensor([float("nan"), 1.0])).isnan()
