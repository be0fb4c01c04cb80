"""Chunks: the Jacobians of some examples and directions, and every pair of them under a byte budget."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import torch

from nngeo_core.errors import ShapeError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.contraction import GramMethod, Pairing
from nngeo_core.sweep.generator import Generator
from nngeo_ntk.contract import Kept, kept_form
from nngeo_ntk.recorded import Recorded

__all__ = ["Chunk", "DEFAULT_MEMORY_BUDGET", "Source", "pairs"]

DEFAULT_MEMORY_BUDGET = 2**30
"""Bytes of kept Jacobians, where the generator was given no budget."""


@dataclass(frozen=True)
class Chunk:
    """Jacobians in the form in which they wait for partners.

    Attributes:
        layers: By layer id; a layer that the model did not call is absent.
        examples: Which of all examples these are.
        directions: Which of all output directions.
        outputs: c, the number of all directions.
        nbytes: Bytes that they take.
        dtype: The dtype in which sums are kept.
        device: Where they are.
    """

    layers: Mapping[str, Kept]
    examples: slice
    directions: slice
    outputs: int
    nbytes: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Source:
    """Where chunks come from, any number of times.

    Attributes:
        generator: Differentiates the model.
        examples: As read.
        method: How layers are to be contracted; None for the cheapest way of each.
        pairing: Which directions meet.
    """

    generator: Generator
    examples: Recorded
    method: GramMethod | None
    pairing: Pairing

    def chunks(self, example: int = 0, direction: int = 0) -> Iterator[Chunk]:
        """All chunks from a direction of an example on, in order: all directions of some examples, or one example in parts."""
        if direction:
            yield from self._rest(example, direction)
            example += 1
        with closing(self.generator.stream(self.examples.starting_at(example))) as stream:
            for batch in stream:
                yield self._chunk(batch, example)
                example += batch.n_examples if batch.directions.stop == batch.total_directions else 0

    def _rest(self, example: int, direction: int) -> Iterator[Chunk]:
        """The chunks of one example from a direction on, which may be cut otherwise than the last time."""
        alone = self.examples.one(example)
        with closing(self.generator.stream([alone])) as stream:
            for batch in stream:
                start, stop = batch.directions.start, batch.directions.stop
                if start < direction < stop:
                    batch = self.generator.jacobian(alone, slice(direction, stop))
                if stop > direction:
                    yield self._chunk(batch, example)

    def _chunk(self, batch: JacobianBatch, first: int) -> Chunk:
        layers = {
            name: kept_form(layer, self.method, self.pairing, batch.dtype) for name, layer in batch.layers.items()
        }
        return Chunk(
            layers,
            slice(first, first + batch.n_examples),
            batch.directions,
            batch.total_directions,
            sum(layer.nbytes for layer in layers.values()),
            batch.dtype,
            batch.device,
        )


def pairs(rows: Source, columns: Source | None, budget: int) -> Iterator[tuple[Chunk, Chunk]]:
    """Every pair of chunks once: of two sources, or of one with itself, in which case the first is not the later one.

    As many chunks as fit the budget are kept and meet all that come after them; then the next ones are, computed once more.

    Raises:
        ShapeError: Not all examples have equally many output directions.
    """
    outputs = None
    for first, second in _all_pairs(rows, columns, budget):
        outputs = first.outputs if outputs is None else outputs
        for chunk in (first, second):
            if chunk.outputs != outputs:
                raise ShapeError(
                    f"examples {chunk.examples.start} to {chunk.examples.stop - 1} have {chunk.outputs} outputs each, and "
                    f"the first ones {outputs}; a kernel needs equally many. Give a `function` that returns those to compare"
                )
        yield first, second


def _all_pairs(rows: Source, columns: Source | None, budget: int) -> Iterator[tuple[Chunk, Chunk]]:
    start: tuple[int, int] | None = (0, 0)
    while start is not None:
        kept: list[Chunk] = []
        size, start_next = 0, None
        for chunk in rows.chunks(*start):
            if start_next is None and kept and size + chunk.nbytes > budget:
                start_next = chunk.examples.start, chunk.directions.start
            if start_next is None:
                kept.append(chunk)
                size += chunk.nbytes
            elif columns is not None:
                break
            if columns is None:
                yield from ((row, chunk) for row in kept)
        if columns is not None:
            yield from ((row, chunk) for chunk in columns.chunks() for row in kept)
        start = start_next
