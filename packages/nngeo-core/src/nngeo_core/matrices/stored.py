"""StoredMatrix: what a matrix about some layers is made of, before any linear algebra."""

import os
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

import torch
from torch import Tensor

from nngeo_core.errors import NonFiniteError, ShapeError, UnsupportedOperationError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.description import describe_layers, rebuild_layers
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.linear_algebra.precision import full_precision
from nngeo_core.matrices.files import Storable
from nngeo_core.matrices.memo import Memo
from nngeo_core.parallel.group import Group
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.checkpoint import Checkpoint, checkpoint_in
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.populate import collect
from nngeo_core.sweep.processes import telling
from nngeo_core.vectors.checked import checked_batch, checked_flat
from nngeo_core.vectors.pvector import PVector

__all__ = ["StoredMatrix"]

Self = TypeVar("Self", bound="StoredMatrix")
T = TypeVar("T")


class StoredMatrix(Storable):
    """Construction and storage; `PMat` says what the arguments mean.

    A representation whose data are not one tensor names its `tensors`, and makes the data of them again: `_data_restored`.
    """

    kind: ClassVar[str] = "pmat"
    name: ClassVar[str]
    accumulator: ClassVar[type[Accumulator]]
    exact_entries: ClassVar[str] = ""
    """Which entries of F it holds exactly: "all", "blocks", "diagonal", or none of them (empty).

    Or "kronecker", where its entries within a layer are those of the Kronecker factors of `nngeo_core.conventions`.
    """

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
        likelihood: str | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 100,
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
        self.likelihood = generator.likelihood.name if generator is not None and likelihood is None else likelihood
        self._memo = Memo()
        if generator is not None and examples is not None:
            layer_collection.check_same(generator.layer_collection)
            data, self.n_examples = self._from_examples(
                generator, examples, progress, checkpoint_in(checkpoint, checkpoint_every)
            )
        self.data = self._checked(data)

    @classmethod
    def prepare(cls, generator: Generator, choices: Any = None) -> Accumulator | None:
        """The sums that a sweep has to fill for a matrix about the generator's layers; None if it stores no sums.

        Args:
            generator: Differentiates the model.
            choices: What a representation that is made of others was asked for.

        Raises:
            TypeError: There are choices, and the representation has none.
        """
        if choices is not None:
            raise TypeError(f"{cls.__name__} is one representation, with no choices by layer; got {choices!r}")
        return cls.accumulator(generator.layer_collection)

    def _from_examples(
        self, generator: Generator, examples: Any, progress: bool, checkpoint: Checkpoint | None
    ) -> tuple[Any, int | None]:
        """The data computed from examples, and their number."""
        sums = self.prepare(generator)
        if sums is None:
            if checkpoint is not None:
                self._unsupported("a checkpoint", "it sums nothing over the examples that could be lost; leave it out")
            return examples, None
        (data,) = collect(generator, examples, [sums], type(self).__name__ if progress else False, checkpoint)
        return data, sums.n_examples

    def _checked(self, data: Any) -> Any:
        """The data in its stored form, or an error that says what was expected: by default one tensor of `_data_shape`."""
        shape = self._data_shape()
        if not isinstance(data, Tensor) or data.shape != shape:
            given = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
            raise ShapeError(f"the data of a {type(self).__name__} is a tensor of shape {shape}, got {given}")
        if not all_finite(data):
            raise NonFiniteError(f"the data of a {type(self).__name__} has NaN or infinite entries")
        return data

    def _data_shape(self) -> tuple[int, ...]:
        """The shape of the data, where that is one tensor."""
        raise NotImplementedError(f"{type(self).__name__} must say what its data is: override _data_shape or _checked")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the stored numbers."""
        return next(iter(self.tensors().values())).dtype

    @property
    def device(self) -> torch.device:
        """The device of the stored numbers."""
        return next(iter(self.tensors().values())).device

    def _description(self) -> dict[str, Any]:
        if not isinstance(self.data, Tensor) and not _overrides(type(self), "_data_restored"):
            self._unsupported(
                "a file",
                "its class has data that are not one tensor, and no _data_restored to make them again from tensors()",
            )
        return {
            "layers": describe_layers(self.layer_collection),
            "n_examples": self.n_examples,
            "symmetric": self.symmetric,
            "likelihood": self.likelihood,
            "data": self._data_description(),
        }

    def _data_description(self) -> dict[str, Any]:
        """What `_data_restored` has to know besides the tensors, in a form that JSON keeps."""
        return {}

    @classmethod
    def _restored(cls: type[Self], tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> Self:
        layers = rebuild_layers(description["layers"])
        return cls(
            data=cls._data_restored(tensors, description["data"], layers),
            layer_collection=layers,
            n_examples=description["n_examples"],
            symmetric=description["symmetric"],
            likelihood=description["likelihood"],
        )

    @classmethod
    def _data_restored(
        cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any], layers: LayerCollection
    ) -> Any:
        """The data, from what `tensors` and `_data_description` returned: the inverse of both."""
        return tensors["data"]

    @property
    def nbytes(self) -> int:
        """Bytes that the stored tensors take."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def nbytes_per_layer(self) -> dict[str, int]:
        """Bytes of each layer's share, by layer id, as far as the representation tells them apart (`stored_numbers`)."""
        numbers = self.stored_numbers(self.layer_collection)
        known = numbers.items() if isinstance(numbers, Mapping) else ()
        return {layer_id: count * self.dtype.itemsize for layer_id, count in known if count is not None}

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

    def size(self, dim: int | None = None) -> tuple[int, int] | int:
        """The size of the matrix, whatever its size in memory.

        Args:
            dim: 0 or 1 for one dimension, None for both.
        """
        size = (self.layer_collection.numel(), self.layer_collection.numel())
        return size if dim is None else size[dim]

    def to(self: Self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Self:
        """The same matrix in another dtype or on another device; this one is unchanged.

        Raises:
            TypeError: The dtype is not a real floating-point one.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"a matrix holds real floating-point numbers, got dtype {dtype}")
        return self._mapped(lambda tensor: tensor.to(device=device, dtype=dtype))

    def _mapped(self: Self, change: Callable[[Tensor], Tensor]) -> Self:
        """A matrix whose stored tensors are changed one by one."""
        if not isinstance(self.data, Tensor):
            self._unsupported("a copy in another dtype or on another device", "compute it from a model there")
        return self._like(change(self.data), self.symmetric, self.n_examples)

    def __repr__(self) -> str:
        """Representation, size, examples, likelihood, bytes, dtype and device."""
        examples = "an unknown number of" if self.n_examples is None else self.n_examples
        likelihood = "" if self.likelihood is None else f"{self.likelihood}, "
        return (
            f"{type(self).__name__}({self.size(0)} x {self.size(1)}, {examples} examples, {likelihood}{self.nbytes} bytes, "
            f"{self.dtype}, {self.device})"
        )

    def _like(self: Self, data: Any, symmetric: bool = True, n_examples: int | None = None) -> Self:
        """A matrix of this representation and these layers with other data."""
        return type(self)(
            self.generator,
            data=data,
            layer_collection=self.layer_collection,
            symmetric=symmetric,
            n_examples=n_examples,
            likelihood=self.likelihood,
        )

    def _cached(self, key: Hashable, make: Callable[[], T], of: Hashable = None) -> T:
        """What `make` returns, kept until a stored tensor is replaced or changed in place, or `of` is another damping."""
        return self._memo.get(self.tensors().values(), key, make, of)

    @property
    def _group(self) -> Group | None:
        """The processes that compute each product together; None where every one has the numbers for it."""
        return None

    def _on_vectors(self, act: Callable[[Tensor], Tensor], v: PVector | Tensor) -> Any:
        """Apply a function of rows (..., d) to a vector, or to a batch of them."""
        with telling(self._group, "a product"):
            batch = checked_batch(v, self.layer_collection, self.dtype) if isinstance(v, Tensor) else None
            flat = self._flat(v) if batch is None else batch
            with full_precision(self.device):
                found = act(flat)
        return found if batch is not None else self._vector(found)

    def _flat(self, v: Any) -> Tensor:
        return checked_flat(v, self.layer_collection, self.dtype)

    def _vector(self, flat: Tensor) -> PVector:
        return PVector(self.layer_collection, vector_repr=flat)

    def _unsupported(self, what: str, instead: str) -> NoReturn:
        raise UnsupportedOperationError(f"{what} is not a {type(self).__name__}; {instead}")


def _overrides(kind: type[StoredMatrix], method: str) -> bool:
    found = getattr(kind, method)  # a class method, or a static one
    return getattr(found, "__func__", found) is not getattr(StoredMatrix, method).__func__
