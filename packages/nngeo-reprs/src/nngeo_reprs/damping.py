"""Solving with M + regul I: when that is possible, and what to say when it is not."""

from collections.abc import Callable

import torch
from nngeo_core.errors import NotPositiveDefiniteError
from torch import Tensor

__all__ = ["check_invertible", "factorize"]

Solver = Callable[[Tensor], Tensor]


def check_invertible(pivots: Tensor, regul: float, what: str, exact: bool = False) -> None:
    """Raise if damped eigenvalues or pivots vanish in comparison with the largest one.

    Args:
        pivots: Eigenvalues of M + regul I, or the pivots of its factorization.
        regul: The damping that is in them.
        what: Names the matrix.
        exact: The entries stand on their own (a diagonal matrix), so that only zeros are refused.

    Raises:
        NotPositiveDefiniteError: Naming a damping that would do.
    """
    sizes = pivots.abs()
    largest, eps = float(sizes.max()), torch.finfo(pivots.dtype).eps
    if float(sizes.min()) > (0.0 if exact else eps * largest):
        return
    workable = max(10 * eps * pivots.numel() ** 0.5 * largest, torch.finfo(pivots.dtype).tiny, 10 * regul)
    raise NotPositiveDefiniteError(
        f"{what} + {regul:g} I is singular to working precision ({pivots.dtype}, smallest to largest pivot "
        f"{float(sizes.min()):.1e} : {largest:.1e}); use regul={workable:.0e} or more, or a model in float64"
    )


def factorize(matrix: Tensor, regul: float, symmetric: bool) -> Solver:
    """A function that solves (M + regul I) x = b for columns b (d, k): by Cholesky if M is positive definite, else by LU.

    Raises:
        NotPositiveDefiniteError: M + regul I is singular to working precision.
    """
    damped = matrix.clone()
    damped.diagonal().add_(regul)
    if symmetric:
        triangle, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            check_invertible(triangle.diagonal().square(), regul, "the matrix")
            return lambda columns: torch.cholesky_solve(columns, triangle)
    factors, pivots, _ = torch.linalg.lu_factor_ex(damped)
    check_invertible(factors.diagonal(), regul, "the matrix")
    return lambda columns: torch.linalg.lu_solve(factors, pivots, columns)
