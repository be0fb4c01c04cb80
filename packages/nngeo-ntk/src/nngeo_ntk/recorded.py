"""Recorded: examples read once, whatever order their loader has, and used as often as a computation needs them."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from nngeo_core.sweep.examples import (
    Batch,
    count_examples,
    is_one_batch,
    iterate_batches,
    map_tensors,
    select_examples,
)
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.processes import together
from nngeo_core.sweep.untouched import undisturbed

__all__ = ["NO_OUTPUTS", "Recorded"]

NO_OUTPUTS = "the model returns no output for any example, so that there is nothing to differentiate"


class Recorded:
    """The batches of a loader as they came: a shuffling loader read twice would give two orders, and no Gram matrix.

    Args:
        generator: Whose model is left untouched while the loader is read.
        examples: One batch or a loader, read here and never again.

    Attributes:
        start: How many examples the processes before this one have, where several share a computation.
        total: How many examples all processes have together.

    Raises:
        ValueError: There are no examples.
    """

    def __init__(self, generator: Generator, examples: Any) -> None:
        group = generator.group
        with together(group, "reading the examples") as counts:
            with undisturbed(generator.model, generator.device), torch.no_grad():
                self.batches: list[Batch] = list(_read(examples))
            self.counts = [count_examples(batch) for batch in self.batches]
            counts[:] = [len(self)]
        self.start, self.total = sum(counts[: 0 if group is None else group.rank]), sum(counts)
        if not self.total:
            raise ValueError(f"no examples: {type(examples).__name__} is empty; a kernel needs at least one example")

    @classmethod
    def of(cls, generator: Generator, examples: Any) -> "Recorded":
        """The examples as read: the same object if they were read before."""
        return examples if isinstance(examples, Recorded) else cls(generator, examples)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return sum(self.counts)

    def starting_at(self, first: int) -> Iterator[Batch]:
        """The batches from an example on, the first of them cut."""
        ends = accumulate(self.counts)
        for batch, n, end in zip(self.batches, self.counts, ends, strict=True):
            if end > first:
                yield batch if end - n >= first else select_examples(batch, slice(first - (end - n), n))

    def one(self, number: int) -> Batch:
        """One example as a batch."""
        return select_examples(next(self.starting_at(number)), slice(0, 1))


def _read(examples: Any) -> Iterator[Batch]:
    """The batches that have examples, with tensors of their own: a loader may fill the same memory with the next."""
    whole = is_one_batch(examples)
    for batch in iterate_batches(examples):
        if whole:
            yield batch
        elif count_examples(batch):
            yield map_tensors(batch, Tensor.clone)
