"""Kernels of the examples of several processes, whose captured Jacobians travel around a ring."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import Any

import torch

from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.transport import described, restored
from nngeo_core.parallel.group import Group
from nngeo_core.parallel.packing import pack, unpack
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.untouched import undisturbed
from nngeo_ntk.recorded import Recorded

__all__ = ["Captured", "Replay", "captured", "visitors"]


class Captured(Recorded):
    """Examples that are known by their Jacobians, of all directions of each.

    Args:
        batches: Jacobians, in the order of the examples.
    """

    def __init__(self, batches: list[JacobianBatch]) -> None:
        self.batches: list[Any] = batches
        ends = [batch.directions.stop == batch.total_directions for batch in batches]
        self.counts = [batch.n_examples if last else 0 for batch, last in zip(batches, ends, strict=True)]

    def starting_at(self, first: int) -> Iterator[Any]:
        """Those from an example on, with which a batch begins."""
        seen = 0
        for batch, n in zip(self.batches, self.counts, strict=True):
            if seen >= first:
                yield batch
            seen += n

    def one(self, number: int) -> Any:
        """All directions of an example that is alone in its batches."""
        batches = list(self.starting_at(number))
        last = next(k for k, batch in enumerate(batches) if batch.directions.stop == batch.total_directions)
        return batches[: last + 1]


class Replay:
    """A generator that streams Jacobians which were captured as they are, and differentiates what is no Jacobian.

    Args:
        generator: What differentiates.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def stream(self, batches: Iterable[Any]) -> Iterator[JacobianBatch]:
        """The Jacobians."""
        arriving = iter(batches)
        first = next(arriving, None)
        together = [] if first is None else chain([first], arriving)
        if isinstance(first, JacobianBatch):
            yield from together
        elif isinstance(first, list) and isinstance(first[0], JacobianBatch):
            yield from chain.from_iterable(together)
        else:
            with closing(self._generator.stream(together)) as stream:
                yield from stream


def captured(generator: Generator, examples: Recorded, budget: int) -> Iterator[Captured]:
    """The Jacobians of a process's examples in portions: as many whole examples as fit the budget, and one batch at least."""
    portion: list[JacobianBatch] = []
    size = 0
    with undisturbed(generator.model, generator.device), torch.no_grad(), closing(generator.stream(examples)) as stream:
        for batch in stream:
            nbytes = sum(jacobian.nbytes for jacobian in batch.layers.values())
            if portion and batch.first_slice and size + nbytes > budget:
                yield Captured(portion)
                portion, size = [], 0
            portion.append(batch)
            size += nbytes
    if portion:
        yield Captured(portion)


def visitors(
    mine: Captured | None, first: int, hops: int, group: Group, what: str
) -> Iterator[tuple[int, int, Captured]]:
    """What the processes before this one have captured, with the number of hops it made and the place of its first example.

    Args:
        mine: What this process has captured, which it hands on; None for nothing.
        first: The place of its first example among those of all processes.
        hops: How many processes it is handed to.
        group: The processes.
        what: The operation, for errors.
    """
    parts = [] if mine is None else [described(batch) for batch in mine.batches]
    tensors = [tensor.to(group.device) for _, part in parts for tensor in part]
    value = [first, [[description, len(part)] for description, part in parts]]
    travelling = pack(value, tensors, group.device)
    del parts, tensors
    for hop in range(1, hops + 1):
        travelling = group.shift(travelling, what)
        (place, descriptions), received = unpack(travelling)
        left = iter(received)
        batches = [
            restored(description, [next(left) for _ in range(count)], group.device)
            for description, count in descriptions
        ]
        if batches:
            yield hop, place, Captured(batches)
