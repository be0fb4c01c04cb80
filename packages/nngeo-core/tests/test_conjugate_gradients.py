"""Conjugate gradients against dense solves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nngeo_core import ConvergenceError, NonFiniteError, NotPositiveDefiniteError
from nngeo_core.linear_algebra.conjugate_gradients import conjugate_gradients


def _matrix(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    d = len(eigenvalues)
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))
    found: Tensor = (basis * eigenvalues) @ basis.T
    return (found + found.T) / 2


def _rows(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _check(matrix: Tensor, x: Tensor, right: Tensor, tolerance: float = 1e-13) -> None:
    residual = torch.linalg.vector_norm(x @ matrix - right, dim=-1)
    size = torch.linalg.matrix_norm(matrix, 2) * torch.linalg.vector_norm(x, dim=-1)
    assert (residual <= tolerance * (size + torch.linalg.vector_norm(right, dim=-1))).all()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("smallest", [1.0, 1e-4, 1e-8])
def test_the_residual_is_that_of_a_stable_method(smallest: float, scale: float) -> None:
    matrix = scale * _matrix(torch.logspace(0, torch.tensor(smallest).log10().item(), 30, dtype=torch.float64))
    right = _rows(4, 30) * torch.tensor([[1e-150], [1.0], [0.0], [1e150]], dtype=torch.float64)
    x = conjugate_gradients(lambda rows: rows @ matrix, right)
    _check(matrix, x, right)
    assert not x[2].any()


def test_shapes_are_kept_and_rows_that_are_done_take_no_more_products() -> None:
    matrix, counts = _matrix(torch.linspace(1, 9, 12, dtype=torch.float64)), []

    def apply(rows: Tensor) -> Tensor:
        counts.append(len(rows))
        return rows @ matrix

    easy = torch.linalg.eigh(matrix)[1][:, 0]
    right = torch.stack([easy, _rows(12)[:]]).view(2, 1, 12)
    x = conjugate_gradients(apply, right)
    assert x.shape == (2, 1, 12)
    _check(matrix, x.view(2, 12), right.view(2, 12))
    assert counts[:2] == [2, 1]
    assert set(counts[2:]) == {1}
    assert conjugate_gradients(apply, right[:0]).shape == (0, 1, 12)


def test_a_good_preconditioner_saves_iterations() -> None:
    matrix, counts = (
        torch.diag(torch.logspace(0, 5, 40, dtype=torch.float64))
        + _matrix(torch.linspace(0, 1, 40, dtype=torch.float64)),
        [0, 0],
    )

    def apply(place: int) -> Callable[[Tensor], Tensor]:
        def product(rows: Tensor) -> Tensor:
            counts[place] += 1
            return rows @ matrix

        return product

    plain = conjugate_gradients(apply(0), _rows(1, 40))
    better = conjugate_gradients(apply(1), _rows(1, 40), lambda rows: rows / matrix.diagonal())
    _check(matrix, plain, _rows(1, 40))
    _check(matrix, better, _rows(1, 40))
    assert 2 * counts[1] < counts[0]


def test_float32_ends_at_its_own_rounding() -> None:
    matrix = _matrix(torch.logspace(0, -3, 20, dtype=torch.float64)).float()
    x = conjugate_gradients(lambda rows: rows @ matrix, _rows(2, 20).float())
    assert x.dtype == torch.float32
    _check(matrix, x, _rows(2, 20).float(), 1e-5)


def test_it_is_differentiable_twice() -> None:
    matrix, right = _matrix(torch.linspace(1, 5, 6, dtype=torch.float64)), _rows(2, 6).requires_grad_()

    def solve(rows: Tensor) -> Tensor:
        return conjugate_gradients(lambda part: part @ matrix, rows)

    assert torch.autograd.gradcheck(solve, right)
    assert torch.autograd.gradgradcheck(lambda rows: solve(rows).square(), right)


def test_what_is_not_positive_definite_is_named_with_a_damping_that_works() -> None:
    matrix = _matrix(torch.tensor([-1.0, 2.0, 3.0], dtype=torch.float64))
    with pytest.raises(NotPositiveDefiniteError, match=r"the Hessian is not positive definite.*regul=\d"):
        conjugate_gradients(lambda rows: rows @ matrix, _rows(1, 3), what="the Hessian")
    singular = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    with pytest.raises(NotPositiveDefiniteError, match="met a unit vector"):
        conjugate_gradients(lambda rows: rows @ singular, _rows(1, 3))
    with pytest.raises(NotPositiveDefiniteError, match=r"preconditioner of the matrix is not positive definite"):
        conjugate_gradients(lambda rows: rows @ matrix @ matrix, _rows(1, 3), lambda rows: -rows)


def test_too_few_iterations_raise() -> None:
    matrix = _matrix(torch.logspace(0, -6, 30, dtype=torch.float64))
    with pytest.raises(ConvergenceError, match=r"left a residual of .* after 3 iterations, where tol=1e-12; give more"):
        conjugate_gradients(lambda rows: rows @ matrix, _rows(1, 30), max_iterations=3)


def test_bad_arguments() -> None:
    for options in ({"tol": 0.0}, {"max_iterations": 0}):
        with pytest.raises(ValueError, match="are positive"):
            conjugate_gradients(lambda rows: rows, _rows(1, 3), **options)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError, match="a right-hand side"):
        conjugate_gradients(lambda rows: rows, torch.full((1, 3), float("nan")))
    with pytest.raises(NonFiniteError, match="a product of the matrix"):
        conjugate_gradients(lambda rows: rows * float("inf"), torch.ones(1, 3))
