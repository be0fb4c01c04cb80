"""Chunks: the Jacobians of some examples and directions, and every pair of them under a byte budget."""

from collections.abc import Generator as PythonGenerator
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

from nngeo_core.errors import ShapeError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.contraction import GramMethod, Pairing
from nngeo_core.sweep.generator import Generator
from nngeo_ntk.recorded import Recorded
from nngeo_ntk.shelf import Arrived, Chunk, Shelf

__all__ = ["DEFAULT_MEMORY_BUDGET", "Source", "pairs"]

DEFAULT_MEMORY_BUDGET = 2**30
"""Bytes of kept Jacobians, where the generator was given no budget."""


@dataclass(frozen=True)
class Source:
    """Where Jacobians come from, any number of times.

    Attributes:
        generator: Differentiates the model.
        examples: As read.
        method: How layers are to be contracted; None for the cheapest way of each.
        pairing: Which directions meet.
        partners: How many examples those of another source are, if they meet such: both wait in the same form.
    """

    generator: Generator
    examples: Recorded
    method: GramMethod | None
    pairing: Pairing
    partners: int = 0

    def arriving(self, example: int = 0, direction: int = 0) -> PythonGenerator[Arrived, None, None]:
        """All Jacobians from a direction of an example on: all directions of some examples, or one example in parts."""
        if direction:
            yield from self._rest(example, direction)
            example += 1
        with closing(self.generator.stream(self.examples.starting_at(example))) as stream:
            for batch in stream:
                arrived = self._arrived(batch, example)
                example += batch.n_examples if batch.directions.stop == batch.total_directions else 0
                del batch  # or it would still be there while the next one is made
                yield arrived
                del arrived

    def _rest(self, example: int, direction: int) -> Iterator[Arrived]:
        """Those of one example from a direction on, which may be cut otherwise than the last time."""
        alone = self.examples.one(example)
        with closing(self.generator.stream([alone])) as stream:
            for batch in stream:
                start, stop = batch.directions.start, batch.directions.stop
                if start < direction < stop:
                    batch = self.generator.jacobian(alone, slice(direction, stop))
                if stop > direction:
                    yield self._arrived(batch, example)

    def _arrived(self, batch: JacobianBatch, first: int) -> Arrived:
        return Arrived(batch, first, self.method, self.pairing, max(len(self.examples), self.partners))

    def fill(self, arriving: Iterator[Arrived], budget: int) -> tuple[list[Chunk], Arrived | None]:
        """What fits the budget, side by side as far as it is of one kind, and the first that does not fit."""
        shelves: list[Shelf] = []
        size, left_over = 0, None
        for arrived in arriving:
            nbytes = arrived.nbytes
            if shelves and size + nbytes > budget:
                left_over = arrived
                break
            if not shelves or not shelves[-1].takes(arrived):
                shelves.append(Shelf(arrived, self._room(arrived, nbytes, budget - size)))
            shelves[-1].put(arrived)
            size += nbytes
            del arrived
        return [shelf.chunk() for shelf in shelves], left_over

    def _room(self, arrived: Arrived, nbytes: int, left: int) -> int:
        """For how many examples like these there is room."""
        n, whole = arrived.batch.n_examples, arrived.batch.directions == slice(0, arrived.batch.total_directions)
        fitting = n * left // max(1, nbytes) if whole else n
        return max(n, min(fitting, len(self.examples) - arrived.first))


def _alone(arrived: Arrived) -> Chunk:
    shelf = Shelf(arrived, arrived.batch.n_examples)
    shelf.put(arrived)
    return shelf.chunk()


def pairs(rows: Source, columns: Source | None, budget: int) -> Iterator[tuple[Chunk, Chunk]]:
    """Every pair of chunks once: of two sources, or of one with itself, in which case the first is not the later one.

    As many Jacobians as fit the budget are kept, side by side in chunks as large as may be, and meet one another and all that
    come after them; then the next ones are, computed once more.

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
        with closing(rows.arriving(*start)) as arriving:
            kept, next_one = rows.fill(arriving, budget)
            start = None if next_one is None else (next_one.first, next_one.batch.directions.start)
            if columns is None:
                yield from ((row, chunk) for k, chunk in enumerate(kept) for row in kept[: k + 1])
                for arrived in chain([next_one] if next_one else [], arriving):
                    chunk = _alone(arrived)
                    yield from ((row, chunk) for row in kept)
        if columns is not None:
            with closing(columns.arriving()) as arriving:
                for arrived in arriving:
                    chunk = _alone(arrived)
                    yield from ((row, chunk) for row in kept)
