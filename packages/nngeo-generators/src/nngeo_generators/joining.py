"""Joining: small batches of one kind are run together, since a layer's products take as long for few examples as for some."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from nngeo_core.sweep.examples import Batch, example_shapes, map_tensors, select_examples

__all__ = ["Part", "join", "kept"]


@dataclass(frozen=True)
class Part:
    """Examples that are run together.

    Attributes:
        batch: The examples.
        numbers: For each of them, the number of the batch that it came in.
    """

    batch: Batch
    numbers: tuple[int, ...]

    @cached_property
    def shapes(self) -> tuple[torch.Size, ...]:
        """The shapes of one example's tensors."""
        return example_shapes(self.batch)

    @cached_property
    def flat(self) -> tuple[list[Any], TreeSpec]:
        """All that is in the batch, one by one, and how it is nested."""
        return tree_flatten(self.batch)

    def select(self, chosen: slice) -> "Part":
        """Some of the examples."""
        return Part(select_examples(self.batch, chosen), self.numbers[chosen])


def join(arriving: Iterable[tuple[Part, int]]) -> Iterator[Part]:
    """Parts in their order, neighbours of one kind put together.

    Args:
        arriving: Each part with the number of examples that it may be joined to.
    """
    waiting: list[Part] = []
    for arrived, most in arriving:
        count = sum(len(part.numbers) for part in waiting) + len(arrived.numbers)
        if waiting and (count > most or not _alike(waiting[0], arrived)):
            yield _joined(waiting)
            waiting = []
        if len(arrived.numbers) >= most:  # goes on at once: a loader may fill its memory with the next batch
            yield arrived
        else:
            waiting.append(kept(arrived))
    if waiting:
        yield _joined(waiting)


def kept(part: Part) -> Part:
    """With tensors of its own, since the next batch may be read into the same memory."""
    return Part(map_tensors(part.batch, Tensor.clone), part.numbers)


def _alike(first: Part, second: Part) -> bool:
    """Whether two batches differ in nothing but the values and the number of their examples."""
    (leaves, structure), (others, other_structure) = first.flat, second.flat
    return structure == other_structure and all(_same_kind(*pair) for pair in zip(leaves, others, strict=True))


def _same_kind(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape[1:] == second.shape[1:] and first.dtype == second.dtype and first.layout == second.layout
    plain = isinstance(first, str | int | float) and type(first) is type(second)
    return bool(first == second) if plain else first is second


def _joined(parts: Sequence[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    columns, structures = zip(*(part.flat for part in parts), strict=True)
    leaves = [torch.cat(some) if isinstance(some[0], Tensor) else some[0] for some in zip(*columns, strict=True)]
    return Part(tree_unflatten(leaves, structures[0]), tuple(number for part in parts for number in part.numbers))
