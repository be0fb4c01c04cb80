"""FMatDense: the contract, and what only the whole kernel has."""

import pytest
import torch
from torch import nn

from nngeo_core import FVector, GramMatrix, NonFiniteError, ShapeError
from nngeo_core.testing import FMatContract
from nngeo_ntk import FMatDense


class TestFMatDense(FMatContract):
    representation = FMatDense


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 3), (2, 3, 1, 3)])
def test_data_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"a FMatDense are a tensor of shape \(c, n, c, m\)"):
        FMatDense(data=torch.ones(shape))


def test_a_kernel_of_other_examples_of_equal_number_is_a_cross_kernel() -> None:
    data = torch.arange(4.0).view(1, 2, 1, 2)
    assert FMatDense(data=data).symmetric
    assert not FMatDense(data=data, symmetric=False).symmetric
    with pytest.raises(ShapeError, match="not symmetric"):
        FMatDense(data=torch.ones(1, 2, 1, 3), symmetric=True)


def test_a_changed_kernel_is_factorized_again() -> None:
    kernel = FMatDense(data=torch.eye(2).view(1, 2, 1, 2))
    u = FVector(torch.ones(1, 2))
    assert kernel.solve(u, 1.0).vector_repr.tolist() == [[0.5, 0.5]]
    kernel.data *= 3
    assert kernel.solve(u, 1.0).vector_repr.tolist() == [[0.25, 0.25]]
    kernel.data = (torch.eye(2) * 7).view(1, 2, 1, 2).mul_(1)  # of the same version
    assert kernel.solve(u, 1.0).vector_repr.tolist() == [[0.125, 0.125]]


@pytest.mark.parametrize("representation", ["dense", "blockdiag", "trace"])
def test_solutions_are_differentiable_whatever_was_solved_before(representation: str) -> None:
    model, x = nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64)
    kernel = GramMatrix(model, x, representation)
    c, n, _, _ = kernel.size()
    with torch.inference_mode():
        kernel.solve(FVector(torch.ones(c, n, dtype=torch.float64)), 0.1)
    u = torch.randn(c, n, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: kernel.solve(FVector(u), 0.1).vector_repr, u)


def test_solutions_are_differentiable_with_respect_to_data_that_want_it() -> None:
    root = torch.randn(6, 6, dtype=torch.float64)
    data = (root @ root.T).view(2, 3, 2, 3).requires_grad_()
    kernel, u = FMatDense(data=data), torch.randn(2, 3, dtype=torch.float64)
    matrix = data.detach().view(6, 6).clone().requires_grad_()
    torch.linalg.solve(matrix + 0.1 * torch.eye(6, dtype=torch.float64), u.flatten()).sum().backward()
    for _ in range(2):  # no graph is kept from one to the next
        data.grad = None
        kernel.solve(FVector(u), 0.1).vector_repr.sum().backward()
        assert data.grad is not None and matrix.grad is not None
        found, expected = (part.view(6, 6) + part.view(6, 6).T for part in (data.grad, matrix.grad))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("representation", ["dense", "blockdiag", "trace"])
@pytest.mark.parametrize("crossed", [False, True])
def test_a_kernel_that_overflows_is_refused(representation: str, crossed: bool) -> None:
    x = torch.tensor([[1.0], [2.0], [1e25]])
    for large in (x, x.flip(0)):
        others = large if crossed else None
        with pytest.raises(NonFiniteError, match="NaN or infinite entries"):
            GramMatrix(nn.Linear(1, 2), large, representation, loader2=others, check="off")


def test_a_kernel_that_overflows_beside_its_diagonal_is_refused() -> None:
    """Per-example gradients pushed through the layer overflow on the way."""
    x, model = torch.tensor([[1.0, 1e10], [1e30, 1e-30]]), nn.Linear(1, 1, bias=False)

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return model(x[:, :1]) * x[:, 1:]

    exact = GramMatrix(model, x, "dense", scaled, check="off", method="gradients")
    assert exact.get_dense_tensor().isfinite().all()
    with pytest.raises(NonFiniteError, match="compute it in float64"):
        GramMatrix(model, x, "dense", scaled, check="off", method="products")
