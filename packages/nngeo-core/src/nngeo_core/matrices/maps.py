"""PushForward and PullBack: the Jacobian as a map between parameter space and function space."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NoReturn, overload

import torch
from torch import Tensor

from nngeo_core.errors import LayerCollectionMismatchError, ShapeError, UnsupportedOperationError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.precision import full_precision
from nngeo_core.matrices.fmat import FMat
from nngeo_core.parallel.group import Group
from nngeo_core.plugins import registry
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.processes import telling
from nngeo_core.vectors.checked import checked_flat
from nngeo_core.vectors.fvector import FVector
from nngeo_core.vectors.pvector import PVector

__all__ = ["JacobianMap", "PullBack", "PushForward"]


class JacobianMap(ABC):
    """What both maps hold: J[c, n] = d f(x_n)_c / d theta in some form, for examples in a fixed order.

    Attributes:
        generator: Differentiates the model; None for a map made from numbers.
        examples: As they were read; None for a map made from numbers.
        layer_collection: The parameters.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    generator: Generator | None
    examples: Any
    layer_collection: LayerCollection

    @abstractmethod
    def size(self) -> tuple[int, int, int]:
        """(c, n, d)."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of products."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of products."""

    @abstractmethod
    def get_dense_tensor(self) -> Tensor:
        """J, shape (c, n, d)."""

    @property
    def _group(self) -> Group | None:
        """The processes that compute each product together; None where every one has the numbers for it."""
        return None

    def __repr__(self) -> str:
        """Form, sizes, dtype and device."""
        c, n, d = self.size()
        return f"{type(self).__name__}({c} outputs, {n} examples, {d} parameters, {self.dtype}, {self.device})"

    def _computed(self, what: str) -> Generator:
        """The generator, for what can only be had from the model."""
        if self.generator is None:
            raise UnsupportedOperationError(
                f"{what} needs the model, and this {type(self).__name__} was made from data; Jacobian(model, loader) has it"
            )
        return self.generator

    def _refuse(self, other: object) -> NoReturn:
        with telling(self._group, "a product"):
            raise TypeError(
                f"a {type(self).__name__} multiplies a vector or the other map: J @ v, J.T @ u, J @ J.T or J.T @ J; got "
                f"{type(other).__name__}"
            )

    def _check_same_function(self, other: "JacobianMap") -> None:
        mine, theirs = self._computed("a product of two maps"), other._computed("a product of two maps")
        self.layer_collection.check_same(other.layer_collection)
        if mine.model is not theirs.model or mine.function is not theirs.function:
            raise LayerCollectionMismatchError(
                "the maps are about different models or functions, whose parameters are not the same; build both with one "
                "model and one function"
            )


class PushForward(JacobianMap):
    """The linear map v -> J v that carries a change of parameters to the change of outputs on n examples."""

    kind = "push_forward"

    @property
    @abstractmethod
    def T(self) -> "PullBack":
        """The pull-back of the same examples."""

    def mv(self, v: PVector) -> FVector:
        """J v, shape (c, n).

        Raises:
            LayerCollectionMismatchError: v is about other layers.
        """
        with telling(self._group, "J v"):
            flat = checked_flat(v, self.layer_collection, self.dtype)
            with full_precision(self.device):
                return FVector(self._mv(flat))

    @abstractmethod
    def _mv(self, v: Tensor) -> Tensor:
        """J v, shape (c, n), for v (d,)."""

    @overload
    def __matmul__(self, other: PVector) -> FVector: ...
    @overload
    def __matmul__(self, other: "PullBack") -> FMat: ...
    def __matmul__(self, other: "PVector | PullBack") -> FVector | FMat:
        """`J @ v` is J v; `J @ J.T` the kernel K = J J^T as the registered FMat "implicit", a cross kernel for other examples.

        Raises:
            PluginError: nngeo-ntk is not installed.
            LayerCollectionMismatchError: The other map is about another model or other layers.
        """
        if isinstance(other, PVector):
            return self.mv(other)
        if not isinstance(other, PullBack):
            self._refuse(other)
        self._check_same_function(other)
        columns = None if other.examples is self.examples else other.examples
        kind = registry.representation("implicit", kind="fmat")
        found: FMat = kind(self.generator, examples=self.examples, others=columns)
        return found


class PullBack(JacobianMap):
    """The linear map u -> J^T u that carries a covector on outputs back to parameters, summed over examples."""

    kind = "pull_back"

    @property
    @abstractmethod
    def T(self) -> PushForward:
        """The push-forward of the same examples."""

    def mv(self, u: FVector) -> PVector:
        """J^T u.

        Raises:
            ShapeError: u is not (c, n) for the map's examples.
        """
        with telling(self._group, "J^T u"):
            self._check(u)
            with full_precision(self.device):
                return PVector(self.layer_collection, vector_repr=self._mv(u.vector_repr.to(self.dtype)))

    def _check(self, u: object) -> None:
        if not isinstance(u, FVector):
            raise TypeError(f"expected an FVector, got {type(u).__name__}; FVector(vector_repr=tensor) makes one")
        if tuple(u.size()) != self.size()[:2]:
            raise ShapeError(f"expected an FVector of shape {self.size()[:2]}, got {tuple(u.size())}")
        if torch.promote_types(u.vector_repr.dtype, self.dtype) != self.dtype:
            raise TypeError(
                f"the vector is {u.vector_repr.dtype} and the map {self.dtype}; use u.to(dtype={self.dtype}), or a model in "
                "the vector's dtype"
            )

    @abstractmethod
    def _mv(self, u: Tensor) -> Tensor:
        """J^T u, shape (d,), for u (c, n)."""

    @overload
    def __matmul__(self, other: FVector) -> PVector: ...
    @overload
    def __matmul__(self, other: PushForward) -> Any: ...
    def __matmul__(self, other: FVector | PushForward) -> Any:
        """`J.T @ u` is J^T u; `J.T @ J / n` the Gauss-Newton matrix (1/n) J^T J as the registered PMat "implicit".

        Raises:
            PluginError: nngeo-reprs is not installed.
            LayerCollectionMismatchError: The other map is about another model or other layers.
            ValueError: It is about other examples.
        """
        if isinstance(other, FVector):
            return self.mv(other)
        if not isinstance(other, PushForward):
            self._refuse(other)
        self._check_same_function(other)
        if other.examples is not self.examples:
            raise ValueError("J.T @ J needs both maps of the same examples: take J.T of that very J")
        kind = registry.representation("implicit", kind="pmat")
        return self.size()[1] * kind(self.generator, examples=self.examples)
