"""Solving with M + regul I: when that is possible, and what to say when it is not."""

from collections.abc import Callable

import torch
from torch import Tensor

from nngeo_core.conventions import DEFAULT_REGUL
from nngeo_core.errors import NotPositiveDefiniteError
from nngeo_core.linear_algebra.norms import euclidean_norm

__all__ = ["Solver", "check_definite", "check_invertible", "factorize"]

Solver = Callable[[Tensor], Tensor]


def check_invertible(eigenvalues: Tensor, regul: float, what: str, exact: bool = False) -> None:
    """Raise if eigenvalues of M + regul I vanish in comparison with the largest one.

    Args:
        eigenvalues: Those of M + regul I, of any shape.
        regul: The damping that is in them.
        what: Names the matrix.
        exact: The entries stand on their own (a diagonal matrix), so that only zeros are refused.

    Raises:
        NotPositiveDefiniteError: Naming a damping that would do.
    """
    if not eigenvalues.numel():  # of a layer without parameters
        return
    low, high = (float(end) for end in eigenvalues.aminmax())
    smallest = low if low > 0 else float(eigenvalues.abs().min())
    units = 1 if regul else sum(eigenvalues.shape[-2:])  # undamped, eigenvalues are as good as their decomposition
    rounding = units * torch.finfo(eigenvalues.dtype).eps * max(-low, high)
    if not smallest > (0.0 if exact else rounding):
        raise _singular(what, regul, eigenvalues.dtype, smallest, rounding * eigenvalues.numel() ** 0.5)


def check_definite(eigenvalues: Tensor, regul: float, what: str, exact: bool = False) -> None:
    """Raise unless eigenvalues of M + regul I are positive, beyond rounding of the largest one.

    Takes the arguments of `check_invertible`.

    Raises:
        NotPositiveDefiniteError: Naming a damping that would do.
    """
    smallest = float(eigenvalues.min()) if eigenvalues.numel() else 0.0
    if smallest < 0:
        raise NotPositiveDefiniteError(
            f"{what} + {regul:g} I is not positive definite: its smallest eigenvalue is {smallest:.1e}; use "
            f"regul={2 * (regul - smallest):.0e} or more"
        )
    check_invertible(eigenvalues, regul, what, exact)


def factorize(matrix: Tensor, regul: float, symmetric: bool, what: str = "the matrix") -> Solver:
    """A function that solves (M + regul I) x = b for columns b (..., d, k): by Cholesky if M is positive definite, else by LU.

    Args:
        matrix: M, shape (d, d), or a stack of such matrices.
        regul: The damping.
        symmetric: Whether to try Cholesky's factorization.
        what: Names the matrix.

    Raises:
        NotPositiveDefiniteError: The smallest singular value of M + regul I is within rounding of zero.
    """
    damped = matrix.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(regul)
    solve, solve_adjoint = _factorized(damped, symmetric)
    rounding = torch.finfo(damped.dtype).eps * euclidean_norm(damped, (-2, -1))
    smallest = _smallest_singular_value(solve, solve_adjoint, damped)
    if not (smallest > rounding).all():
        raise _singular(what, regul, damped.dtype, float(smallest.min()), float(rounding.max()))
    return solve


def _factorized(matrix: Tensor, symmetric: bool) -> tuple[Solver, Solver]:
    """Functions that solve with a matrix and with its transpose."""
    if symmetric:
        triangle, failed = torch.linalg.cholesky_ex(matrix)
        if not failed.any():
            return (lambda columns: _solve_by_halves(triangle, columns),) * 2
    factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    return (
        lambda columns: torch.linalg.lu_solve(factors, pivots, columns),
        lambda columns: torch.linalg.lu_solve(factors, pivots, columns, adjoint=True),
    )


def _solve_by_halves(triangle: Tensor, columns: Tensor) -> Tensor:
    """(L L^T)^-1 b; `torch.cholesky_solve` copies L first, which takes ten times as long as solving for one column."""
    half = torch.linalg.solve_triangular(triangle, columns, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(triangle.mT, half, upper=True)
    return solution


def _smallest_singular_value(solve: Solver, solve_adjoint: Solver, matrix: Tensor) -> Tensor:
    """An estimate from above, from two rounds of inverse iteration; the pivots alone say too little. Shape (...)."""
    d = matrix.shape[-1]
    columns = (
        torch.arange(1, d + 1, dtype=matrix.dtype, device=matrix.device).cos().expand(matrix.shape[:-1]).unsqueeze(-1)
    )
    for act in (solve, solve_adjoint, solve, solve_adjoint):
        columns = act(columns / euclidean_norm(columns, (-2, -1), keepdim=True))
    return torch.nan_to_num(1 / euclidean_norm(columns, (-2, -1)), nan=0.0)


def _singular(
    what: str, regul: float, dtype: torch.dtype, smallest: float, rounding: float
) -> NotPositiveDefiniteError:
    """The error, with a damping ten times above rounding."""
    workable = max(10 * rounding, 10 * regul) or DEFAULT_REGUL
    or_double = "" if dtype == torch.float64 else ", or use a model in float64"
    return NotPositiveDefiniteError(
        f"{what} + {regul:g} I is singular to working precision: its smallest eigenvalue or singular value, about "
        f"{smallest:.1e}, is within rounding of zero in {dtype}; solve with regul={workable:.0e} or more{or_double}"
    )
