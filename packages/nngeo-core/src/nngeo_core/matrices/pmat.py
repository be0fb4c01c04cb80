"""PMat: a d x d matrix in parameter space, whatever its representation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

import torch
from torch import Tensor

from nngeo_core.conventions import DEFAULT_REGUL, checked_regul
from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.populate import collect
from nngeo_core.vectors.checked import checked_flat
from nngeo_core.vectors.pvector import PVector

__all__ = ["PMat"]

Self = TypeVar("Self", bound="PMat")


class PMat(ABC):
    """A finished d x d matrix M: linear algebra only, always about the same layers.

    A representation derives from this class, names its `Accumulator`, and implements the private methods, which receive
    checked arguments. Vectors reach them as flat tensors (..., d), and what they return keeps the graph of the vector.

    Args:
        generator: Differentiates the model; needed with `examples`.
        data: The stored numbers, in the form that the representation documents.
        examples: One batch or a loader from which the generator computes the data.
        layer_collection: The parameters that the matrix is about; None takes the generator's.
        n_examples: How many examples `data` was averaged over, if known.
        symmetric: False for a product, whose linear solves then do without symmetry.
        progress: Whether to show a progress bar for each pass over the examples.

    Raises:
        ValueError: Both or neither of `data` and `examples` are given, or no layer collection is known.
    """

    kind: ClassVar[str] = "pmat"
    name: ClassVar[str]
    accumulator: ClassVar[type[Accumulator]]
    exact_entries: ClassVar[str] = ""
    """Which entries of F it holds exactly: "all", "diagonal", or none of them (empty)."""

    def __init__(
        self,
        generator: Generator | None = None,
        data: Any = None,
        examples: Any = None,
        layer_collection: LayerCollection | None = None,
        *,
        n_examples: int | None = None,
        symmetric: bool = True,
        progress: bool = False,
    ) -> None:
        if (data is None) == (examples is None):
            given = "both" if data is not None else "neither"
            raise ValueError(f"give either `data` or `examples` to {type(self).__name__}; got {given}")
        if examples is not None and generator is None:
            raise ValueError(f"{type(self).__name__} needs a `generator` to compute its data from `examples`; got none")
        if layer_collection is None:
            if generator is None:
                raise ValueError(
                    f"{type(self).__name__} from `data` needs a `layer_collection` or a `generator`; got none"
                )
            layer_collection = generator.layer_collection
        self.generator = generator
        self.layer_collection = layer_collection
        self.n_examples = n_examples
        self.symmetric = symmetric
        if generator is not None and examples is not None:
            layer_collection.check_same(generator.layer_collection)
            sums = self.accumulator(layer_collection)
            (data,) = collect(generator, examples, [sums], type(self).__name__ if progress else False)
            self.n_examples = sums.n_examples
        self.data = self._checked(data)

    @abstractmethod
    def _checked(self, data: Any) -> Any:
        """The data in its stored form, or an error that says what was expected."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the stored numbers."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the stored numbers."""

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> Mapping[str, int | None] | int:
        """How many numbers a matrix of this representation stores, as known before any batch; `print(layers)` shows it.

        Args:
            layers: What the matrix is about. `layers.structure(layer_id)` says what a layer's Jacobian will be.

        Returns:
            A number for each layer, by its id: None if the representation cannot hold the layer, no entry if that or the
            number is not known. One number for all where a layer has no share of its own, as in a dense matrix. A
            representation that says nothing is printed with a question mark.
        """
        return {}

    def mv(self, v: PVector) -> PVector:
        """The product M v, differentiable with respect to v.

        Raises:
            LayerCollectionMismatchError: v is about other layers.
        """
        return self._vector(self._mv(self._flat(v)))

    @abstractmethod
    def _mv(self, v: Tensor) -> Tensor:
        """M v for v (..., d)."""

    def vTMv(self, v: PVector) -> Tensor:
        """The quadratic form v^T M v, 0-dimensional, differentiable with respect to v.

        Raises:
            LayerCollectionMismatchError: v is about other layers.
        """
        return self._quadratic_form(self._flat(v))

    def _quadratic_form(self, v: Tensor) -> Tensor:
        """v^T M v for v (d,)."""
        return v @ self._mv(v)

    def solve(self, v: PVector, regul: float = DEFAULT_REGUL) -> PVector:
        """(M + regul I)^-1 v, differentiable with respect to v.

        Raises:
            ValueError: `regul` is negative or no single number.
            LayerCollectionMismatchError: v is about other layers.
            NotPositiveDefiniteError: M + regul I is singular to working precision.
        """
        return self._vector(self._solve(self._flat(v), checked_regul(regul)))

    @abstractmethod
    def _solve(self, v: Tensor, regul: float) -> Tensor:
        """(M + regul I)^-1 v for v (..., d)."""

    def inverse(self: Self, regul: float = DEFAULT_REGUL) -> Self:
        """(M + regul I)^-1 in the same representation.

        Raises:
            ValueError: `regul` is negative or no single number.
            UnsupportedOperationError: The inverse is not of this representation.
            NotPositiveDefiniteError: M + regul I is singular to working precision.
        """
        return self._inverse(checked_regul(regul))

    @abstractmethod
    def _inverse(self: Self, regul: float) -> Self:
        """(M + regul I)^-1."""

    def mm(self: Self, other: Self) -> Self:
        """The product M M' with a matrix of the same representation; it is not symmetric unless both are diagonal.

        Raises:
            UnsupportedOperationError: The other one is of another representation.
            LayerCollectionMismatchError: It is about other layers.
        """
        self._check_partner(other, "the product")
        return self._mm(other)

    @abstractmethod
    def _mm(self: Self, other: Self) -> Self:
        """M M'."""

    def __add__(self: Self, other: Self) -> Self:
        """M + M' in the same representation."""
        self._check_partner(other, "the sum")
        return self._add(other)

    def __sub__(self: Self, other: Self) -> Self:
        """M - M' in the same representation."""
        self._check_partner(other, "the difference")
        return self._add(-1.0 * other)

    @abstractmethod
    def _add(self: Self, other: Self) -> Self:
        """M + M'."""

    def __mul__(self: Self, scalar: float | Tensor) -> Self:
        """The multiple c M, of a number or a 0-dimensional tensor."""
        if not isinstance(scalar, int | float) and not (isinstance(scalar, Tensor) and scalar.ndim == 0):
            raise TypeError(
                f"a {type(self).__name__} is multiplied by a number or a 0-dimensional tensor, got "
                f"{type(scalar).__name__}; use mv for vectors and mm for matrices"
            )
        return self._scaled(scalar)

    __rmul__ = __mul__

    def __truediv__(self: Self, scalar: float | Tensor) -> Self:
        """The multiple M / c."""
        return self * (1 / scalar)

    def __neg__(self: Self) -> Self:
        """The multiple -M."""
        return self * -1.0

    @abstractmethod
    def _scaled(self: Self, scalar: float | Tensor) -> Self:
        """The multiple c M."""

    def __matmul__(self, v: PVector) -> PVector:
        """`M @ v` is `M.mv(v)`."""
        return self.mv(v)

    @abstractmethod
    def trace(self) -> Tensor:
        """The trace of M, 0-dimensional."""

    @abstractmethod
    def frobenius_norm(self) -> Tensor:
        """The square root of the sum of squares of all entries, 0-dimensional."""

    @abstractmethod
    def get_diag(self) -> Tensor:
        """The diagonal, shape (d,), in the order of the flat parameters."""

    @abstractmethod
    def get_dense_tensor(self) -> Tensor:
        """All entries, shape (d, d), in the order of the flat parameters."""

    def size(self, dim: int | None = None) -> tuple[int, int] | int:
        """The size of the matrix, whatever its size in memory.

        Args:
            dim: 0 or 1 for one dimension, None for both.
        """
        size = (self.layer_collection.numel(), self.layer_collection.numel())
        return size if dim is None else size[dim]

    def __repr__(self) -> str:
        """Representation, size, examples, dtype and device."""
        examples = "an unknown number of" if self.n_examples is None else self.n_examples
        return (
            f"{type(self).__name__}({self.size(0)} x {self.size(1)}, {examples} examples, {self.dtype}, {self.device})"
        )

    def _like(self: Self, data: Any, symmetric: bool = True, n_examples: int | None = None) -> Self:
        """A matrix of this representation and these layers with other data."""
        return type(self)(
            self.generator,
            data=data,
            layer_collection=self.layer_collection,
            symmetric=symmetric,
            n_examples=n_examples,
        )

    def _flat(self, v: PVector) -> Tensor:
        return checked_flat(v, self.layer_collection, self.dtype)

    def _vector(self, flat: Tensor) -> PVector:
        return PVector(self.layer_collection, vector_repr=flat)

    def _check_partner(self, other: "PMat", result: str) -> None:
        if not isinstance(other, PMat):
            raise TypeError(f"{result} of {type(self).__name__} with {type(other).__name__}: expected another matrix")
        if type(other) is not type(self):
            self._unsupported(
                f"{result} with {type(other).__name__}",
                "compute both matrices in one representation, or add their products mv",
            )
        self.layer_collection.check_same(other.layer_collection)

    def _unsupported(self, what: str, instead: str) -> NoReturn:
        raise UnsupportedOperationError(f"{what} is not a {type(self).__name__}; {instead}")
