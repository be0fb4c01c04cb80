"""Preconditioned conjugate gradients on plain functions, for many right-hand sides at once."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nngeo_core.errors import ConvergenceError, NonFiniteError, NotPositiveDefiniteError
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.linear_algebra.linear_map import Rows, apply_linear
from nngeo_core.linear_algebra.norms import euclidean_norm

__all__ = ["DEFAULT_TOLERANCE", "conjugate_gradients"]

DEFAULT_TOLERANCE = 1e-12

_ROUNDING = 32
"""Units of rounding of |M| |x| that a residual may keep: no method in that dtype does much better."""


def conjugate_gradients(
    apply: Rows,
    right: Tensor,
    preconditioner: Rows | None = None,
    tol: float = DEFAULT_TOLERANCE,
    max_iterations: int | None = None,
    what: str = "the matrix",
) -> Tensor:
    """x with M x = b for each row b, M symmetric positive definite (Hestenes & Stiefel 1952); differentiable in b.

    A row is done when its true residual b - M x, computed anew, is at most `tol` |b|, or within rounding of |M| |x|. Rows
    that are done cost nothing more. The derivative is another solve.

    Args:
        apply: M v for each row v of a tensor (k, d).
        right: The right-hand sides, shape (..., d).
        preconditioner: Symmetric positive definite and close to M^-1, as `apply`; None for the identity.
        tol: Of the residual, relative to the right-hand side.
        max_iterations: How many products with M a row may take; None for 10 d, 10,000 at most.
        what: Names M in errors.

    Raises:
        ValueError: `tol` or `max_iterations` is not positive.
        NotPositiveDefiniteError: A vector v with v^T M v <= 0, or zero to rounding, was met.
        ConvergenceError: A row is not done after `max_iterations`.
        NonFiniteError: A product has a NaN or an infinity.

    Example:
        >>> conjugate_gradients(lambda rows: rows * torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0]])).round()
        tensor([[3., 2.]])
    """
    if not tol > 0 or (max_iterations is not None and max_iterations < 1):
        raise ValueError(f"tol and max_iterations are positive, got {tol} and {max_iterations}")
    most = 10 * min(right.shape[-1], 1000) if max_iterations is None else max_iterations

    def solve(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return _solve(_checked(apply, what), rows, preconditioner, tol, most, what)

    rows = right.reshape(-1, right.shape[-1])
    return apply_linear(solve, solve, rows).view(right.shape)


def _checked(apply: Rows, what: str) -> Rows:
    def checked(rows: Tensor) -> Tensor:
        product = apply(rows)
        if not all_finite(product):
            raise NonFiniteError(f"a product of {what} with a vector has a NaN or an infinity")
        return product

    return checked


def _solve(apply: Rows, right: Tensor, preconditioner: Rows | None, tol: float, most: int, what: str) -> Tensor:
    """Rows of any length, solved for unit ones so that no square over- or underflows."""
    scales = euclidean_norm(right, dim=1, keepdim=True)
    if not scales.isfinite().all():
        raise NonFiniteError("a right-hand side has a NaN or an infinity")
    solution = torch.zeros_like(right)
    places = (scales[:, 0] > 0).nonzero()[:, 0]
    if not len(places):
        return solution
    state = _State(right[places] / scales[places], apply, preconditioner or (lambda rows: rows), tol, what)
    for done in state.run(most):
        solution[places[done]] = state.x[done] * scales[places[done]]
        places = places[~done]
    return solution


@dataclass
class _State:
    """The rows that are not done: x, their residuals, and lower bounds of |M|."""

    right: Tensor
    apply: Rows
    preconditioner: Rows
    tol: float
    what: str

    def __post_init__(self) -> None:
        self.x = torch.zeros_like(self.right)
        self.norms = torch.zeros_like(self.right[:, 0])
        self.eps = torch.finfo(self.right.dtype).eps
        self._start(self.right)

    def _start(self, residual: Tensor) -> None:
        self.residual = residual
        self.direction = self.preconditioner(residual)
        self.size = self._positive((self.direction * residual).sum(1))

    def run(self, most: int) -> Iterator[Tensor]:
        """Iterate, yielding which of the remaining rows have just been done."""
        for _ in range(most):
            self._step()
            claimed = self._small(self.residual, self.x, self.norms)
            if not claimed.any():
                continue
            done = self._verified(claimed)
            if done.any():
                yield done
                self._keep(~done)
            if not len(self.x):
                return
        left = euclidean_norm(self.residual, dim=1).max()
        raise ConvergenceError(
            f"conjugate gradients on {self.what} left a residual of {float(left):.1e} |b| after {most} iterations, where "
            f"tol={self.tol:g}; give more max_iterations, a larger regul, a larger tol, or a preconditioner close to the matrix"
        )

    def _verified(self, claimed: Tensor) -> Tensor:
        """Which rows are done indeed: the residual by recurrence drifts. The others go on from their true residual."""
        residual = self.right[claimed] - self.apply(self.x[claimed])
        small = self._small(residual, self.x[claimed], self.norms[claimed])
        direction = self.preconditioner(residual)
        self.residual[claimed], self.direction[claimed] = residual, direction
        self.size[claimed] = self._positive((direction * residual).sum(1))
        done = claimed.clone()
        done[claimed] = small
        return done

    def _step(self) -> None:
        length = euclidean_norm(self.direction, dim=1)  # which a preconditioner may leave very small or large
        unit = self.direction / length.unsqueeze(1)
        product = self.apply(unit)
        self.norms = torch.maximum(self.norms, euclidean_norm(product, dim=1))
        curvature = (unit * product).sum(1)
        self._check_curvature(curvature)
        step = (self.size / length / curvature).unsqueeze(1)
        self.x = self.x + step * unit
        self.residual = self.residual - step * product
        following = self.preconditioner(self.residual)
        size = self._positive((following * self.residual).sum(1))
        self.direction = following + (size / self.size).unsqueeze(1) * self.direction
        self.size = size

    def _small(self, residual: Tensor, x: Tensor, norms: Tensor) -> Tensor:
        """Whether residuals of unit right-hand sides are at most the tolerance, or rounding."""
        rounding = _ROUNDING * self.eps * (1 + norms * euclidean_norm(x, dim=1))
        small: Tensor = euclidean_norm(residual, dim=1) <= rounding.clamp(min=self.tol)
        return small

    def _keep(self, chosen: Tensor) -> None:
        for name in ("right", "x", "norms", "residual", "direction", "size"):
            setattr(self, name, getattr(self, name)[chosen])

    def _check_curvature(self, curvature: Tensor) -> None:
        bad = curvature <= self.eps * self.norms
        if bad.any():
            smallest, norm = float(curvature[bad].min()), float(self.norms[bad].max())
            workable = max(-2 * smallest, 100 * self.eps * norm)
            raise NotPositiveDefiniteError(
                f"{self.what} is not positive definite to working precision: conjugate gradients met a unit vector v with "
                f"v^T M v = {smallest:.1e}, where |M| is at least {norm:.1e}; add regul={workable:.0e} or more"
            )

    def _positive(self, sizes: Tensor) -> Tensor:
        """r^T P r; zero only where r is."""
        if not (sizes >= 0).all():
            raise NotPositiveDefiniteError(
                f"the preconditioner of {self.what} is not positive definite: r^T P r = {float(sizes.min()):.1e}; give one "
                "that is, such as the diagonal with a regul"
            )
        return sizes
