"""Shelf: Jacobians of consecutive examples put side by side, so that one product meets them all."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch

from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.contraction import GramMethod, Pairing
from nngeo_core.jacobians.index import IndexJacobian
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.sum import SumJacobian
from nngeo_ntk.contract import Kept, waits_as_gradients
from nngeo_ntk.gradient_rows import GradientRows, gradient_rows
from nngeo_ntk.tied import structured_parts

__all__ = ["Arrived", "Chunk", "Shelf"]


@dataclass(frozen=True)
class Chunk:
    """Jacobians in the form in which they wait for partners.

    Attributes:
        layers: By layer id; a layer that the model did not call is absent.
        examples: Which of all examples these are.
        directions: Which of all output directions.
        outputs: c, the number of all directions.
        dtype: The dtype in which sums are kept.
        device: Where they are.
    """

    layers: Mapping[str, Kept]
    examples: slice
    directions: slice
    outputs: int
    dtype: torch.dtype
    device: torch.device


class Arrived:
    """Jacobians as a generator made them, and what is known of the form in which they will wait.

    Args:
        batch: The Jacobians.
        first: The number of their first example.
        method: How layers are to be contracted; None for the cheapest way of each.
        pairing: Which directions meet.
        total: How many examples there are in all.
    """

    def __init__(
        self, batch: JacobianBatch, first: int, method: GramMethod | None, pairing: Pairing, total: int
    ) -> None:
        self.batch, self.first = batch, first
        self.as_gradients = {
            name: waits_as_gradients(layer, method, pairing, total) for name, layer in batch.layers.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes that they will take."""
        width = self.batch.dtype.itemsize
        return sum(
            torch.Size(layer.shape).numel() * width if self.as_gradients[name] else _nbytes(layer)
            for name, layer in self.batch.layers.items()
        )

    @property
    def kind(self) -> Hashable:
        """What must be equal for two of them to stand side by side."""
        layers = tuple(
            (name, self.as_gradients[name], *_kind(layer, self.as_gradients[name]))
            for name, layer in self.batch.layers.items()
        )
        directions = (self.batch.directions.start, self.batch.directions.stop, self.batch.total_directions)
        return layers, directions, self.batch.dtype


def _nbytes(layer: LayerJacobian) -> int:
    return sum(part.nbytes for part in (structured_parts(layer) or (layer,)))


def _kind(layer: LayerJacobian, as_gradients: bool) -> tuple[Hashable, ...]:
    if isinstance(layer, SumJacobian) and not as_gradients:
        return tuple(_kind(part, as_gradients) for part in layer.parts)
    if isinstance(layer, KroneckerJacobian):
        return (layer.layout,) if as_gradients else (layer.layout, layer.positions)
    return (type(layer), layer.index.shape[1]) if isinstance(layer, IndexJacobian) and not as_gradients else ()


class Shelf:
    """Room for the Jacobians of consecutive examples of one kind.

    Args:
        arrived: The first of them.
        examples: For how many examples there is to be room; gradients are written where they stay.
    """

    def __init__(self, arrived: Arrived, examples: int) -> None:
        batch = arrived.batch
        self.kind, self.start, self.examples = arrived.kind, arrived.first, 0
        self.directions, self.outputs = batch.directions, batch.total_directions
        self.dtype, self.device = batch.dtype, batch.device
        c = batch.directions.stop - batch.directions.start
        self._room = {
            name: torch.empty(examples, c, layer.shape[2], dtype=batch.dtype, device=batch.device)
            for name, layer in batch.layers.items()
            if arrived.as_gradients[name]
        }
        self._gradients: dict[str, GradientRows] = {}
        self._structured: dict[str, list[LayerJacobian]] = {}

    def takes(self, arrived: Arrived) -> bool:
        """Whether these can stand beside those that are there."""
        return self.kind == arrived.kind and self.start + self.examples == arrived.first

    def put(self, arrived: Arrived) -> None:
        """Put them beside the others."""
        stop = self.examples + arrived.batch.n_examples
        for name, layer in arrived.batch.layers.items():
            if arrived.as_gradients[name]:
                self._gradients[name] = gradient_rows(layer, self.dtype, self._room[name][self.examples : stop])
            else:
                self._structured.setdefault(name, []).append(layer)
        self.examples = stop

    def chunk(self) -> Chunk:
        """All that stands there, as one chunk; the shelf is empty afterwards."""
        layers: dict[str, Kept] = {
            name: GradientRows(self._room[name][: self.examples], last.layout) for name, last in self._gradients.items()
        }
        while self._structured:
            name, parts = self._structured.popitem()
            layers[name] = _side_by_side(parts)
        examples = slice(self.start, self.start + self.examples)
        return Chunk(layers, examples, self.directions, self.outputs, self.dtype, self.device)


def _side_by_side(parts: list[LayerJacobian]) -> LayerJacobian:
    """Jacobians (c, n_k, d) of one structure as one (c, sum of n_k, d)."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, SumJacobian):
        sums = [part.parts for part in parts if isinstance(part, SumJacobian)]
        return SumJacobian(tuple(_side_by_side(list(some)) for some in zip(*sums, strict=True)))
    if isinstance(first, IndexJacobian):
        tables = [part for part in parts if isinstance(part, IndexJacobian)]
        index, g = torch.cat([part.index for part in tables]), torch.cat([part.g for part in tables], 1)
        return IndexJacobian(index, g, first.rows)
    kept = [part for part in parts if isinstance(part, KroneckerJacobian)]
    a, g = torch.cat([part.a for part in kept]), torch.cat([part.g for part in kept], 1)
    return KroneckerJacobian(a, g, kept[0].layout)
