"""Damping: what counts as singular, and what the message says about it."""

import re

import pytest
import torch
from torch import Tensor

from nngeo_core import NotPositiveDefiniteError
from nngeo_core.linear_algebra.damping import check_invertible, factorize
from nngeo_core.testing import relative_error


def _low_rank(d: int, rank: int, dtype: torch.dtype, seed: int) -> Tensor:
    rows = torch.randn(rank, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return rows.T @ rows


def _named_regul(error: pytest.ExceptionInfo[NotPositiveDefiniteError]) -> float:
    return float(re.search(r"with regul=(\S+) or more", str(error.value))[1])  # type: ignore[index]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("symmetric", [True, False], ids=["cholesky", "lu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("d", "rank"), [(2, 1), (8, 7), (40, 6), (40, 39), (150, 149)])
def test_a_singular_matrix_never_passes(d: int, rank: int, dtype: torch.dtype, symmetric: bool, seed: int) -> None:
    matrix = _low_rank(d, rank, dtype, seed)
    with pytest.raises(NotPositiveDefiniteError, match=r"the matrix \+ 0 I is singular to working precision") as caught:
        factorize(matrix, 0.0, symmetric)
    regul, eps = _named_regul(caught), torch.finfo(dtype).eps
    assert regul <= 1000 * eps * matrix.norm()
    b = torch.ones(d, 1, dtype=dtype)
    x = factorize(matrix, regul, symmetric)(b)
    assert (matrix @ x + regul * x - b).norm() <= 100 * eps * matrix.norm() * x.norm()


@pytest.mark.parametrize("symmetric", [True, False], ids=["cholesky", "lu"])
def test_the_solution_of_a_stack_and_of_many_columns(symmetric: bool) -> None:
    matrices = torch.stack([_low_rank(4, 9, torch.float64, seed) for seed in range(3)])
    b = torch.randn(3, 4, 2, dtype=torch.float64)
    x = factorize(matrices, 0.5, symmetric)(b)
    assert relative_error(matrices @ x + 0.5 * x, b) <= 1e-12


@pytest.mark.parametrize("symmetric", [True, False], ids=["cholesky", "lu"])
def test_ill_conditioned_is_not_singular(symmetric: bool) -> None:
    basis = torch.linalg.qr(_low_rank(30, 60, torch.float64, 0)).Q
    matrix = basis * torch.logspace(0, -13, 30, dtype=torch.float64) @ basis.T
    b = matrix @ torch.ones(30, 1, dtype=torch.float64)
    x = factorize(matrix, 0.0, symmetric)(b)
    assert relative_error(matrix @ x, b) <= 1e-12
    with pytest.raises(NotPositiveDefiniteError, match=r"about \d\.\de-1[678], is within rounding"):
        factorize(basis * torch.logspace(0, -17, 30, dtype=torch.float64) @ basis.T, 0.0, symmetric)


def test_one_singular_matrix_of_a_stack_is_enough() -> None:
    stack = torch.stack([torch.eye(2), torch.ones(2, 2), torch.eye(2)])
    with pytest.raises(NotPositiveDefiniteError, match="a factor"):
        factorize(stack, 0.0, symmetric=False, what="a factor")


def test_the_matrix_stays_as_it_was() -> None:
    matrix = torch.eye(2)
    factorize(matrix, 1.0, symmetric=True)
    assert torch.equal(matrix, torch.eye(2))


def test_an_indefinite_matrix_is_solved_by_lu() -> None:
    x = factorize(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 0.0, symmetric=True)(torch.tensor([[1.0], [2.0]]))
    assert x.flatten().tolist() == [2.0, 1.0]


def test_the_zero_matrix_is_offered_the_default_damping() -> None:
    with pytest.raises(NotPositiveDefiniteError) as caught:
        factorize(torch.zeros(2, 2), 0.0, symmetric=True)
    regul = _named_regul(caught)
    assert regul == 1e-8
    assert factorize(torch.zeros(2, 2), regul, symmetric=True)(torch.ones(2, 1)).tolist() == [[pytest.approx(1e8)]] * 2


def test_the_message_names_matrix_damping_and_a_larger_one() -> None:
    message = (
        r"^M \+ 1e-10 I is singular to working precision: .* about 1.0e-10, is within rounding of zero in torch.float32"
    )
    with pytest.raises(
        NotPositiveDefiniteError, match=message + r"; solve with regul=2e-06 or more, or use a model in float64$"
    ):
        check_invertible(torch.tensor([1.0, 1e-10]), 1e-10, "M")


def test_eigenvalues_pass_above_rounding_and_entries_above_zero() -> None:
    eps = torch.finfo(torch.float64).eps
    eigenvalues = torch.tensor([1.0, 3 * eps], dtype=torch.float64)
    check_invertible(eigenvalues, 0.0, "M")  # undamped: rounding is d eps
    with pytest.raises(NotPositiveDefiniteError):
        check_invertible(eigenvalues / torch.tensor([1.0, 2.0]), 0.0, "M")
    check_invertible(eigenvalues / torch.tensor([1.0, 2.0]), eps, "M")  # the damping is in them
    with pytest.raises(NotPositiveDefiniteError):
        check_invertible(eigenvalues / torch.tensor([1.0, 4.0]), eps / 2, "M")
    check_invertible(torch.tensor([1.0, -1e-30]), 0.0, "M", exact=True)
    with pytest.raises(NotPositiveDefiniteError):
        check_invertible(torch.tensor([1.0, 0.0]), 0.0, "M", exact=True)
