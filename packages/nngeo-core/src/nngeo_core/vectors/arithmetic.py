"""Vector: the arithmetic that vectors of the parameter space and of the function space share."""

from __future__ import annotations

import copy
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nngeo_core.errors import ShapeError
from nngeo_core.linear_algebra.norms import euclidean_norm

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Vector"]


class Vector(ABC):
    """An element of a vector space whose coordinates lie in one or more tensors.

    `+ - * /` take a vector of the same space (`*` and `/` element by element) or a scalar (a number or a 0-dimensional
    tensor, on either side of `+ - *`), and `@` is the inner product. Results keep the autograd graph of their operands.
    The in-place forms write into the tensors that the vector holds.
    """

    _tensors: tuple[Tensor, ...]
    __array_ufunc__ = None  # numpy scalars and arrays on the left leave the operation to this class
    _borrowed: bool = False  # the tensors belong to a model, which in-place arithmetic would change

    @abstractmethod
    def get_flat_representation(self) -> Tensor:
        """The coordinates as one 1-dimensional tensor."""

    @abstractmethod
    def _aligned(self, other: Self) -> tuple[Tensor, ...]:
        """The other vector's coordinates laid out as this one's, or an error if the spaces differ."""

    def __add__(self, other: Self | float | Tensor) -> Self:
        return self._combine(operator.add, other)

    def __radd__(self, other: float | Tensor) -> Self:
        return self._combine(operator.add, other)

    def __sub__(self, other: Self | float | Tensor) -> Self:
        return self._combine(operator.sub, other)

    def __rsub__(self, other: float | Tensor) -> Self:
        return -self + other

    def __mul__(self, other: Self | float | Tensor) -> Self:
        return self._combine(operator.mul, other)

    def __rmul__(self, other: float | Tensor) -> Self:
        return self._combine(operator.mul, other)

    def __truediv__(self, other: Self | float | Tensor) -> Self:
        return self._combine(operator.truediv, other)

    def __neg__(self) -> Self:
        return self._like(-tensor for tensor in self._tensors)

    def __iadd__(self, other: Self | float | Tensor) -> Self:
        return self._combine_in_place(operator.iadd, other)

    def __isub__(self, other: Self | float | Tensor) -> Self:
        return self._combine_in_place(operator.isub, other)

    def __imul__(self, other: Self | float | Tensor) -> Self:
        return self._combine_in_place(operator.imul, other)

    def __itruediv__(self, other: Self | float | Tensor) -> Self:
        return self._combine_in_place(operator.itruediv, other)

    def __matmul__(self, other: Self) -> Tensor:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.dot(other)

    def dot(self, other: Self) -> Tensor:
        """Inner product sum_i v_i w_i with a vector of the same space, a 0-dimensional tensor.

        Raises:
            TypeError: If `other` is no vector of this kind.
            LayerCollectionMismatchError: If two parameter-space vectors belong to different layer collections.
            ShapeError: If two function-space vectors differ in shape.
        """
        if not isinstance(other, type(self)):
            raise TypeError(f"dot takes another {type(self).__name__}, got {type(other).__name__}")
        return torch.stack([(a * b).sum() for a, b in zip(self._tensors, self._aligned(other), strict=True)]).sum()

    def norm(self, p: float = 2) -> Tensor:
        """The norm (sum_i |v_i|^p)^(1/p), a 0-dimensional tensor; `float("inf")` gives the largest absolute value."""
        flat = self.get_flat_representation()
        norm: Tensor = euclidean_norm(flat) if p == 2 else torch.linalg.vector_norm(flat, p)
        return norm

    def detach(self) -> Self:
        """The same coordinates outside the autograd graph, in the same memory; `.detach().clone()` is a fixed copy."""
        return self._like((tensor.detach() for tensor in self._tensors), borrowed=self._borrowed)

    def clone(self) -> Self:
        """A copy with its own memory, still in the autograd graph."""
        return self._like(tensor.clone() for tensor in self._tensors)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The vector on another device or in another dtype; itself if nothing changes."""
        moved = tuple(tensor.to(device=device, dtype=dtype) for tensor in self._tensors)
        kept = [new is old for new, old in zip(moved, self._tensors, strict=True)]
        return self if all(kept) else self._like(moved, borrowed=self._borrowed and any(kept))

    def _like(self, tensors: Iterable[Tensor], borrowed: bool = False) -> Self:
        vector = copy.copy(self)
        vector._tensors = tuple(tensors)
        vector._borrowed = borrowed
        return vector

    def _combine(self, operation: Callable[[Any, Any], Tensor], other: object) -> Self:
        return self._like(map(operation, self._tensors, self._operands(other)))

    def _combine_in_place(self, operation: Callable[[Any, Any], Tensor], other: object) -> Self:
        if self._borrowed:
            raise ValueError(
                f"this {type(self).__name__} holds the model's own parameters, which in-place arithmetic would change: "
                "use .detach().clone() first, or add_to_model / copy_to_model to change the model"
            )
        for tensor, operand in zip(self._tensors, self._operands(other), strict=True):
            operation(tensor, operand)
        return self

    def _operands(self, other: object) -> tuple[Any, ...]:
        """What stands opposite each of the vector's tensors: the other vector's coordinates, or a scalar."""
        if isinstance(other, type(self)):
            return self._aligned(other)
        kind = type(self).__name__
        if isinstance(other, Tensor):
            if other.ndim:
                raise ShapeError(
                    f"a {kind} combines with a {kind} or a scalar, got a tensor of shape {tuple(other.shape)}"
                )
            other = other.clone()  # a view into this vector would change during an in-place operation
        elif not isinstance(other, Real):
            raise TypeError(f"a {kind} combines with a {kind} or a scalar, got {type(other).__name__}")
        return (other,) * len(self._tensors)
