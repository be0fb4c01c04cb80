"""Matrices known by their products: what iterations make of those."""

from typing import overload

import torch
from torch import Tensor

from nngeo_core.conventions import DEFAULT_REGUL, checked_regul
from nngeo_core.linear_algebra.conjugate_gradients import DEFAULT_TOLERANCE, conjugate_gradients
from nngeo_core.linear_algebra.lanczos import spectral_norm
from nngeo_core.matrices.pmat import PMat
from nngeo_core.sweep.processes import telling
from nngeo_core.vectors.pvector import PVector

__all__ = ["IterativeMatrix"]


class IterativeMatrix(PMat):
    """A matrix that solves by conjugate gradients and has its spectral norm from Lanczos, from products alone."""

    @overload
    def solve(
        self,
        v: PVector,
        regul: float | Tensor = ...,
        preconditioner: PMat | None = ...,
        tol: float = ...,
        max_iterations: int | None = ...,
    ) -> PVector: ...
    @overload
    def solve(
        self,
        v: Tensor,
        regul: float | Tensor = ...,
        preconditioner: PMat | None = ...,
        tol: float = ...,
        max_iterations: int | None = ...,
    ) -> Tensor: ...
    def solve(
        self,
        v: PVector | Tensor,
        regul: float | Tensor = DEFAULT_REGUL,
        preconditioner: PMat | None = None,
        tol: float = DEFAULT_TOLERANCE,
        max_iterations: int | None = None,
    ) -> PVector | Tensor:
        """(M + regul I)^-1 v by conjugate gradients, differentiable with respect to v.

        Args:
            v: A vector; or a batch of flat ones, a tensor (k, d) or (c, n, d).
            regul: The damping r.
            preconditioner: A matrix of any representation close to M, of which `solve(v, regul)` is used.
            tol: What the residual may be, relative to v; a residual within rounding of |M| |x| is good enough too.
            max_iterations: How many products to take at most; None for 10 d, 10,000 at most.

        Raises:
            ValueError: `regul` is negative or no single number, or another number is not positive.
            LayerCollectionMismatchError: v or the preconditioner is about other layers.
            NotPositiveDefiniteError: M + regul I is not positive definite to working precision.
            ConvergenceError: The residual is larger after `max_iterations`.
            UnsupportedOperationError: M is a product, which is not symmetric.
        """
        with telling(self._group, "a solution"):
            self._check_symmetric(
                "a solution by conjugate gradients", "compute the factors, and solve with one after the other"
            )
            damping = checked_regul(regul)
            self._check_preconditioner(preconditioner)

            def act(rows: Tensor) -> Tensor:
                return self._solve_iteratively(rows, damping, preconditioner, tol, max_iterations)

            found: PVector | Tensor = self._on_vectors(act, v)
            return found

    def _check_preconditioner(self, preconditioner: object) -> None:
        if preconditioner is None:
            return
        if not isinstance(preconditioner, PMat):
            raise TypeError(
                f"a preconditioner is a matrix of any representation, got {type(preconditioner).__name__}; FIM(..., 'kfac') "
                "makes one"
            )
        self.layer_collection.check_same(preconditioner.layer_collection)

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        return self._solve_iteratively(v, regul, None, DEFAULT_TOLERANCE, None)

    def _solve_iteratively(
        self, v: Tensor, regul: float, preconditioner: PMat | None, tol: float, max_iterations: int | None
    ) -> Tensor:
        """(M + regul I)^-1 v for v (..., d)."""
        return conjugate_gradients(
            lambda rows: self._mv(rows) + regul * rows,
            v,
            None if preconditioner is None else lambda rows: preconditioner._solve(rows, regul),
            tol,
            max_iterations,
            f"the {type(self).__name__} + {regul:g} I",
        )

    def _largest_singular_value(self, tol: float) -> Tensor:
        self._check_symmetric("the largest singular value", "norm('fro') needs no symmetry")
        value, _ = spectral_norm(self._products, self.layer_collection.numel(), self.dtype, self.device, tol)
        return value

    def _smallest_singular_value(self) -> Tensor:
        self._unsupported("the smallest singular value", "convert('dense') has it")

    def _products(self, rows: Tensor) -> Tensor:
        """M v for each row, without a graph."""
        with torch.no_grad():
            return self._mv(rows)
