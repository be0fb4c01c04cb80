"""Sums, multiples, products and inverses of matrices."""

from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from nngeo_core.conventions import DEFAULT_REGUL, checked_regul
from nngeo_core.linear_algebra.precision import full_precision
from nngeo_core.matrices.stored import StoredMatrix

__all__ = ["MatrixArithmetic"]

Self = TypeVar("Self", bound="MatrixArithmetic")


class MatrixArithmetic(StoredMatrix):
    """What two matrices make, or one and a number."""

    is_identity: ClassVar[bool] = False
    """Whether the representation is that of c I, which can be added to any other one that can hold M + c I."""
    is_lazy: ClassVar[bool] = False
    """Whether a sum with a matrix of any representation keeps both as they are."""

    def inverse(self: Self, regul: float | Tensor = DEFAULT_REGUL) -> Any:
        """(M + regul I)^-1 in the same representation, or the one that the representation's documentation names.

        Raises:
            ValueError: `regul` is negative or no single number.
            UnsupportedOperationError: The inverse is not of this representation.
            NotPositiveDefiniteError: M + regul I is singular to working precision.
        """
        with full_precision(self.device):
            return self._inverse(checked_regul(regul))

    @abstractmethod
    def _inverse(self: Self, regul: float) -> Any:
        """(M + regul I)^-1."""

    def mm(self: Self, other: Self) -> Any:
        """The product M M' with a matrix of the same representation; it is not symmetric unless both are diagonal.

        Raises:
            UnsupportedOperationError: The other one is of another representation.
            LayerCollectionMismatchError: It is about other layers.
        """
        self._check_partner(other, "the product")
        with full_precision(self.device):
            return self._mm(other)

    @abstractmethod
    def _mm(self: Self, other: Self) -> Any:
        """M M'."""

    def __add__(self: Self, other: Any) -> Any:
        """M + M' in the same representation; or M + c I for a `PMatEye`."""
        return self._plus(other, "the sum", 1.0)

    def __sub__(self: Self, other: Any) -> Any:
        """M - M' in the same representation; or M - c I for a `PMatEye`."""
        return self._plus(other, "the difference", -1.0)

    def _plus(self, other: Any, result: str, sign: float) -> Any:
        if isinstance(other, MatrixArithmetic) and type(other) is not type(self):
            if other.is_identity:
                self.layer_collection.check_same(other.layer_collection)
                return self._add_identity(sign * other.scale())
            if self.is_identity:
                return (sign * other) + self
            lazy = next((matrix for matrix in (self, other) if matrix.is_lazy), None)
            if lazy is not None:
                self.layer_collection.check_same(other.layer_collection)
                return lazy._sum_of(self, sign * other if sign != 1 else other)
        self._check_partner(other, result)
        return self._add(sign * other if sign != 1 else other)

    @abstractmethod
    def _add(self: Self, other: Self) -> Any:
        """M + M'."""

    @classmethod
    def _sum_of(cls, first: "MatrixArithmetic", second: "MatrixArithmetic") -> Any:
        """The sum of two matrices of any representations, where this one is lazy."""
        raise NotImplementedError(f"{cls.__name__} is lazy and must say what its sums are")

    def _add_identity(self, scaling: Tensor) -> Any:
        """M + c I for a 0-dimensional c."""
        self._unsupported("the sum with a multiple of the identity", "solve(v, regul=c) damps without forming the sum")

    def scale(self) -> Tensor:
        """The c of c I, 0-dimensional, for the representation of multiples of the identity alone."""
        self._unsupported("a multiple of the identity", "see the documentation of PMatEye")

    def __mul__(self: Self, scalar: float | Tensor) -> Any:
        """The multiple c M, of a number or a 0-dimensional tensor."""
        if not isinstance(scalar, int | float) and not (isinstance(scalar, Tensor) and scalar.ndim == 0):
            raise TypeError(
                f"a {type(self).__name__} is multiplied by a number or a 0-dimensional tensor, got "
                f"{type(scalar).__name__}; use mv for vectors and mm for matrices"
            )
        return self._scaled(scalar)

    __rmul__ = __mul__

    def __truediv__(self: Self, scalar: float | Tensor) -> Any:
        """The multiple M / c."""
        return self * (1 / scalar)

    def __neg__(self: Self) -> Any:
        """The multiple -M."""
        return self * -1.0

    @abstractmethod
    def _scaled(self: Self, scalar: float | Tensor) -> Any:
        """The multiple c M."""

    def _check_partner(self, other: Any, result: str) -> None:
        if not isinstance(other, MatrixArithmetic):
            raise TypeError(
                f"{result} of {type(self).__name__} with {type(other).__name__}: expected another matrix; c I is "
                "PMatEye(layer_collection=..., scaling=c)"
            )
        if type(other) is not type(self):
            self._unsupported(
                f"{result} with {type(other).__name__}",
                "compute both matrices in one representation, or add their products mv",
            )
        self.layer_collection.check_same(other.layer_collection)
