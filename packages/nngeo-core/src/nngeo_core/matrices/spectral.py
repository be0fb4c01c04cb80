"""What follows from the eigenvalues: norms, roots, pseudo-inverses, determinants, samples."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from nngeo_core.conventions import DEFAULT_REGUL, checked_regul
from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.linear_algebra.damping import check_definite
from nngeo_core.linear_algebra.precision import full_precision
from nngeo_core.matrices.eigen import Eigendecomposition
from nngeo_core.matrices.stored import StoredMatrix
from nngeo_core.sweep.processes import telling
from nngeo_core.vectors.pvector import PVector

__all__ = ["SpectralOperations"]

Self = TypeVar("Self", bound="SpectralOperations")


class SpectralOperations(StoredMatrix):
    """Functions of the spectrum of a symmetric matrix. A representation that gives all eigenvalues has most of them."""

    def eigendecomposition(self, k: int | None = None) -> Eigendecomposition:
        """Eigenvalues, ascending, and orthonormal eigenvectors.

        Args:
            k: Take the k largest eigenvalues; None takes all that the representation has.

        Raises:
            ValueError: k is not between 1 and their number.
            UnsupportedOperationError: The matrix is a product, or its representation has no eigendecomposition.
        """
        with telling(self._group, "an eigendecomposition"):
            self._check_symmetric("an eigendecomposition", "solve(v) and mv(v) need none")
            with full_precision(self.device):
                return self._eigendecomposition(k)

    def _eigendecomposition(self, k: int | None) -> Eigendecomposition:
        self._unsupported("an eigendecomposition", "convert('dense') has one, and mv serves any iteration on products")

    def norm(self, ord: str | float = "fro", tol: float = 1e-10) -> Tensor:
        """A norm of M, 0-dimensional: "fro" for Frobenius, 2 for the largest singular value, -2 for the smallest.

        Args:
            ord: Which one.
            tol: Relative error that an iteration may leave; exact representations need none.

        Raises:
            ValueError: It is another one.
            UnsupportedOperationError: It cannot be had in this representation.
        """
        if ord not in ("fro", 2, -2):
            raise ValueError(f"norm(ord) takes 'fro', 2 or -2; got {ord!r}")
        with full_precision(self.device):
            if ord == "fro":
                return self._frobenius_norm()
            return self._largest_singular_value(tol) if ord == 2 else self._smallest_singular_value()

    def _frobenius_norm(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must say what its Frobenius norm is")

    def _largest_singular_value(self, tol: float) -> Tensor:
        return self._singular_values("the largest singular value").amax()

    def _smallest_singular_value(self) -> Tensor:
        return self._singular_values("the smallest singular value").amin()

    def _singular_values(self, what: str) -> Tensor:
        self._check_symmetric(what, "norm('fro') needs no symmetry")
        return self._eigenvalues().abs()

    def _eigenvalues(self) -> Tensor:
        """All eigenvalues, in any order."""
        return self._eigendecomposition(None).values

    def logdet(self, regul: float | Tensor = DEFAULT_REGUL) -> Tensor:
        """log det(M + regul I), 0-dimensional.

        Raises:
            ValueError: `regul` is negative or no single number.
            NotPositiveDefiniteError: M + regul I is not positive definite to working precision.
            UnsupportedOperationError: It cannot be had in this representation.
        """
        self._check_symmetric("a log-determinant", "use convert('dense').get_dense_tensor().logdet()")
        with full_precision(self.device):
            return self._logdet(checked_regul(regul))

    def _logdet(self, regul: float) -> Tensor:
        damped = self._eigenvalues() + regul
        check_definite(damped, regul, f"the {type(self).__name__}")
        return damped.log().sum()

    def sample(self, regul: float | Tensor = DEFAULT_REGUL, generator: torch.Generator | None = None) -> PVector:
        """A draw from the normal distribution N(0, (M + regul I)^-1), of which M + regul I is the precision.

        Args:
            regul: The r of M + r I: the precision of a prior, in a Laplace posterior.
            generator: Source of randomness; None is torch's default one.

        Raises:
            ValueError: `regul` is negative or no single number.
            NotPositiveDefiniteError: M + regul I is not positive definite to working precision.
            UnsupportedOperationError: It cannot be had in this representation.
        """
        self._check_symmetric("a sample", "a product of matrices is no precision matrix")
        with full_precision(self.device):
            return self._vector(self._sample(checked_regul(regul), generator))

    def _sample(self, regul: float, generator: torch.Generator | None) -> Tensor:
        """A draw, shape (d,)."""
        self._unsupported("a sample", "convert('dense') has samples")

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Independent standard normal numbers in the matrix's dtype, on its device."""
        source = self.device if generator is None else generator.device
        return torch.randn(shape, dtype=self.dtype, device=source, generator=generator).to(self.device)

    def sqrt(self: Self) -> Any:
        """The symmetric square root R of a positive semidefinite M, R R = M, in the same representation.

        Eigenvalues at most d eps times the largest are taken for zero.

        Raises:
            NotPositiveDefiniteError: M has a negative eigenvalue beyond rounding.
            UnsupportedOperationError: It cannot be had in this representation.
        """
        self._check_symmetric("a square root", "a product of matrices has no symmetric one")
        with full_precision(self.device):
            return self._sqrt()

    def _sqrt(self: Self) -> Any:
        self._unsupported("a square root", "convert('dense') has one")

    def pinv(self: Self) -> Any:
        """The Moore-Penrose pseudo-inverse, in the same representation.

        Singular values at most d eps times the largest are taken for zero.

        Raises:
            UnsupportedOperationError: It cannot be had in this representation.
        """
        with full_precision(self.device):
            return self._pinv()

    def _pinv(self: Self) -> Any:
        self._unsupported("a pseudo-inverse", "solve(v, regul) with a small regul comes close to its products")

    def _check_symmetric(self, what: str, instead: str) -> None:
        if not self.symmetric:
            raise UnsupportedOperationError(
                f"{what} of a {type(self).__name__} that is not symmetric, being a product of matrices, is not defined "
                f"here; {instead}"
            )
