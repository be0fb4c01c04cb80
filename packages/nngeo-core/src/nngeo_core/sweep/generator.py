"""Generator: what differentiates a model."""

from abc import abstractmethod
from collections.abc import Generator as PythonGenerator
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from nngeo_core.conventions import result_dtype
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.sweep.examples import Batch, iterate_batches
from nngeo_core.sweep.operator import OperatorGenerator
from nngeo_core.sweep.untouched import undisturbed
from nngeo_core.vectors.checked import checked_flat
from nngeo_core.vectors.fvector import FVector
from nngeo_core.vectors.pvector import PVector

__all__ = ["Generator"]


class Generator(OperatorGenerator):
    """Jacobians of a model's outputs on examples, structured or as products; M is F = (1/n) sum_i J_i^T L_i J_i.

    Takes the arguments of `OperatorGenerator`.
    """

    def restricted(self, layer_collection: LayerCollection) -> "Generator":
        """A generator about other layers of the same model, mostly some of these; all else is the same.

        Args:
            layer_collection: The parameters to differentiate.
        """
        found = type(self)(
            self.model,
            self.likelihood,
            self.function,
            layer_collection,
            self.device,
            self.n_output,
            self.memory_budget,
            self.check,
        )
        found.group = self.group
        return found

    def jacobian(self, batch: Batch, directions: slice | None = None) -> JacobianBatch:
        """The Jacobians of one batch.

        Args:
            batch: Some examples.
            directions: Which of their output directions, with start and stop given; None takes all.
        """
        with undisturbed(self.model, self.device), torch.no_grad():
            return self._jacobian(batch, directions)

    @abstractmethod
    def _jacobian(self, batch: Batch, directions: slice | None) -> JacobianBatch:
        """The Jacobians of one batch."""

    @abstractmethod
    def stream(self, batches: Iterable[Batch]) -> PythonGenerator[JacobianBatch, None, None]:
        """The Jacobians of all examples and directions, in slices that fit the memory budget.

        Whoever reads the stream closes it, and does so inside `undisturbed`, as `populate` does.
        """

    def jvp(self, v: PVector, examples: Any) -> FVector:
        """The push-forward J v: how the outputs change along v, shape (c, n).

        Args:
            v: A vector about the generator's layers.
            examples: One batch or a loader.

        Raises:
            LayerCollectionMismatchError: v is about other layers.
            ValueError: There are no examples.
        """
        flat = checked_flat(v, self.layer_collection, self._dtype())
        with undisturbed(self.model, self.device), torch.no_grad():
            return FVector(self._jvp(flat, iterate_batches(examples)))

    @abstractmethod
    def _jvp(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        """J v, shape (c, n), for v of shape (d,)."""

    def vjp(self, u: FVector, examples: Any) -> PVector:
        """The pull-back J^T u, summed over examples and outputs.

        Args:
            u: Shape (c, n), its examples in the order of `examples`.
            examples: One batch or a loader.

        Raises:
            ShapeError: u does not have the shape (c, n) of the outputs.
            ValueError: There are no examples.
        """
        if not isinstance(u, FVector):
            raise TypeError(f"expected an FVector, got {type(u).__name__}; FVector(vector_repr=tensor) makes one")
        with undisturbed(self.model, self.device), torch.no_grad():
            return PVector(self.layer_collection, self._vjp(u.vector_repr, iterate_batches(examples)))

    @abstractmethod
    def _vjp(self, u: Tensor, batches: Iterable[Batch]) -> Tensor:
        """J^T u, shape (d,), for u of shape (c, n)."""

    def _blocks(self, places: Sequence[slice], batches: Iterable[Batch]) -> list[Tensor]:
        """The blocks of F, those of layers from their structure; any others from rows of J."""
        sizes = {layer_id: layer.numel() for layer_id, layer in self.layer_collection.items()}
        layers = {(place.start, place.stop): layer_id for layer_id, place in self.layer_collection.slices().items()}
        found = [
            torch.zeros((place.stop - place.start,) * 2, dtype=self._dtype(), device=self.device) for place in places
        ]
        n = 0
        with closing(self.stream(batches)) as stream:
            for batch in stream:
                n += batch.n_examples if batch.first_slice else 0
                for place, block in zip(places, found, strict=True):
                    layer_id = layers.get((place.start, place.stop))
                    if layer_id is None:
                        rows = batch.to_dense(sizes).flatten(0, 1)[:, place]
                        block += batch.sign * (rows.T @ rows)
                    elif layer_id in batch.layers:
                        block += batch.sign * batch.layers[layer_id].second_moment().to(block.dtype)
                del batch
        if not n:
            raise ValueError("no examples were given; a matrix needs at least one")
        return [block / n for block in found]

    def count_directions(self, outputs: Tensor, batch: Batch) -> tuple[int, int]:
        """How many directions the outputs of a batch have, and how many of those, the last ones, enter with a minus sign."""
        outputs, targets = _precise(outputs), self.likelihood.targets(batch)
        return self.likelihood.n_directions(outputs, targets), self.likelihood.n_negative(outputs, targets)

    def directions(self, outputs: Tensor, batch: Batch, chosen: slice) -> Tensor:
        """The chosen output directions of a batch, shape (c, n, ...), zero at positions that do not count."""
        found = self.likelihood.directions(_precise(outputs), self.likelihood.targets(batch), chosen)
        mask = self.position_mask(outputs, batch)
        return found if mask is None else found * self.likelihood.spread(mask, outputs)

    def metric(self, outputs: Tensor, u: Tensor, batch: Batch) -> Tensor:
        """L u for the outputs of a batch, and u of their shape; positions that do not count are left out."""
        found = self.likelihood.metric(
            _precise(outputs), self.counted(outputs, _precise(u), batch), self.likelihood.targets(batch)
        )
        return self.counted(outputs, found, batch)

    def counted(self, outputs: Tensor, u: Tensor, batch: Batch) -> Tensor:
        """u of the outputs' shape, with zeros at positions that do not count."""
        mask = self.position_mask(outputs, batch)
        return u if mask is None else u * self.likelihood.spread(mask, outputs)


def _precise(tensor: Tensor) -> Tensor:
    """In the dtype that sums are kept in: at least float32."""
    return tensor.to(result_dtype(tensor.dtype))
