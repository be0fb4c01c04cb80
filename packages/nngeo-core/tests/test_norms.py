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


@pytest.mark.parametrize(
    "shape", [(3_000_001,), (1733, 1733), (2, 1_000_000), (1_000_000, 2), (4096, 3), (8192,)], ids=str
)
def test_many_numbers(shape: tuple[int, ...]) -> None:
    tensor = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    choices: list[int | tuple[int, ...] | None] = [None, 0, -1, tuple(range(len(shape)))]
    for numbers in (tensor, 1e-30 * tensor, 1e30 * tensor, tensor.T if tensor.ndim == 2 else tensor[::2]):
        for dim in choices:
            expected = torch.linalg.vector_norm(numbers.double(), dim=dim)
            found = euclidean_norm(numbers, dim)
            assert found.shape == expected.shape
            assert torch.allclose(found.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_derivatives_and_batches(scale: float) -> None:
    tensor = scale * torch.randn(3, 5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    each = torch.func.vmap(euclidean_norm)(tensor)
    assert torch.allclose(each, torch.stack([euclidean_norm(row) for row in tensor]), rtol=1e-14, atol=0)
    gradient = torch.func.grad(euclidean_norm)(tensor)
    assert torch.allclose(gradient, tensor / torch.linalg.vector_norm(tensor), rtol=1e-12, atol=0)
    sparse = torch.zeros(1100, dtype=torch.float64)
    sparse[700] = scale
    sparse.requires_grad_()
    (first,) = torch.autograd.grad(euclidean_norm(sparse), sparse, create_graph=True)
    assert torch.autograd.grad(first.sum(), sparse)[0].isfinite().all()
    assert euclidean_norm(torch.tensor(-3.0), keepdim=True) == 3
    leaf = torch.zeros(3, requires_grad=True)
    euclidean_norm(leaf).backward()
    assert leaf.grad is not None and not leaf.grad.any()


def test_nothing_and_infinity() -> None:
    assert euclidean_norm(torch.ones(0, 3)) == 0
    assert euclidean_norm(torch.ones(0, 3), 1).shape == (0,)
    assert euclidean_norm(torch.tensor([float("-inf"), 1.0])) == float("inf")
    assert euclidean_norm(torch.tensor([float("nan"), 1.0])).isnan()
