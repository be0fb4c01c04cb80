"""FMat: a (c n) x (c n) matrix in function space, whatever its representation."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from nngeo_core.errors import ShapeError
from nngeo_core.vectors.fvector import FVector

__all__ = ["FMat"]


class FMat(ABC):
    """A symmetric operator K on function space: a Gram matrix of tangent features, logically of shape (c, n, c, n).

    A representation derives from this class and implements the private methods, which receive checked tensors (c, n).
    """

    kind: ClassVar[str] = "fmat"
    name: ClassVar[str]

    @abstractmethod
    def size(self) -> tuple[int, int, int, int]:
        """(c, n, c, n), whatever the size in memory."""

    def mv(self, u: FVector) -> FVector:
        """The product K u.

        Raises:
            ShapeError: u is not (c, n).
        """
        return FVector(self._mv(self._checked(u)))

    @abstractmethod
    def _mv(self, u: Tensor) -> Tensor:
        """K u for u (c, n)."""

    def vTMv(self, u: FVector) -> Tensor:
        """The quadratic form u^T K u, 0-dimensional.

        Raises:
            ShapeError: u is not (c, n).
        """
        checked = self._checked(u)
        return (checked * self._mv(checked)).sum()

    @abstractmethod
    def trace(self) -> Tensor:
        """The sum over outputs and examples of the diagonal, 0-dimensional."""

    @abstractmethod
    def get_dense_tensor(self) -> Tensor:
        """All entries, shape (c, n, c, n)."""

    def _checked(self, u: FVector) -> Tensor:
        if not isinstance(u, FVector):
            raise TypeError(f"expected an FVector, got {type(u).__name__}; FVector(vector_repr=tensor) makes one")
        if tuple(u.vector_repr.shape) != self.size()[:2]:
            raise ShapeError(f"expected an FVector of shape {self.size()[:2]}, got {tuple(u.vector_repr.shape)}")
        return u.vector_repr
