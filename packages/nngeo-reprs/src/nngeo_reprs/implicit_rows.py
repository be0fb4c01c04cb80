"""The directions of all examples of a small data set: algebra on their side, where there are fewer of them than parameters."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.sweep.examples import Batch, count_examples, is_one_batch, move_batch
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.operator import OperatorGenerator
from nngeo_core.sweep.untouched import undisturbed
from nngeo_reprs.jacobian_rows import JacobianRows

__all__ = ["LARGEST_GRAM", "RowSide", "checked_examples"]

Batches: TypeAlias = Callable[[], Iterator[Batch]]
"""Iterates over the examples; given to each call, since a matrix that its own row side holds would outlive its name."""

LARGEST_GRAM = 4096
"""Directions of all examples up to which their Gram matrix is formed."""


def checked_examples(examples: Any) -> Any:
    """The examples, if they can be read again and again.

    Raises:
        ValueError: They can be read only once.
        TypeError: They are neither a batch nor a loader.
    """
    if is_one_batch(examples):
        return examples
    if isinstance(examples, Iterator):
        raise ValueError(
            f"a PMatImplicit goes over the examples at each product, and {type(examples).__name__} can be read only once; "
            "give one batch, a list of batches, or a loader that can be iterated again"
        )
    if not isinstance(examples, Iterable) or isinstance(examples, str | bytes):
        raise TypeError(
            "examples are one batch (a tensor, a mapping, or a tuple of tensors) or a loader that yields batches; "
            f"got {type(examples).__name__}"
        )
    return examples


class RowSide:
    """Decides whether the Gram matrix of all directions is formed, and keeps what was computed of it.

    Everything kept holds for one state of model, function and examples. Each call looks at it anew, by one product: whatever
    changes F, be it an attribute of a module or a number in a closure, changes F w for a random w.

    Args:
        generator: Differentiates the model.
    """

    def __init__(self, generator: OperatorGenerator) -> None:
        self.limit = LARGEST_GRAM
        self._generator = generator
        self._state: Tensor | None = None
        self._count: dict[int, bool] = {}
        self._rows: JacobianRows | None = None

    def rows(self, batches: Batches, below: int | None = None, signed: bool = False) -> JacobianRows | None:
        """The Jacobians of all examples, where their directions are few.

        Args:
            batches: Iterates over the examples.
            below: There must be fewer directions than that, besides the limit; None for the limit alone.
            signed: Whether directions with a minus sign will do.
        """
        generator, most = self._generator, self.limit + 1
        if generator.group is not None:  # the rows are on several processes
            return None
        if not isinstance(generator, Generator) or not self.fewer_than(
            batches, most if below is None else min(below, most)
        ):
            return None
        if self._rows is None:
            with undisturbed(generator.model, generator.device), torch.no_grad():
                jacobians = [_in_dtype(batch, generator._dtype()) for batch in generator.stream(batches())]
            self._rows = JacobianRows(generator.layer_collection, jacobians)
        return self._rows if signed or self._rows.definite else None

    def fewer_than(self, batches: Batches, limit: int) -> bool:
        """Whether all examples have fewer directions than that together; nothing is formed to know."""
        if self._generator.group is not None or not isinstance(self._generator, Generator):
            return False
        self._look(batches)
        if limit not in self._count:
            self._count[limit] = self._is_less(batches, limit)
        return self._count[limit]

    def _is_less(self, batches: Batches, limit: int) -> bool:
        generator, rows = self._generator, 0
        assert isinstance(generator, Generator)
        with undisturbed(generator.model, generator.device), torch.no_grad():
            for batch in batches():
                n = count_examples(batch)
                if n:
                    moved = move_batch(batch, generator.device)
                    rows += n * generator.count_directions(generator.outputs(moved, n), moved)[0]
                if rows >= limit:
                    return False
        if not rows:
            raise ValueError("no examples: a matrix needs at least one")
        return True

    def _look(self, batches: Batches) -> None:
        """Forget what was kept, if F is another matrix."""
        generator = self._generator
        source = torch.Generator().manual_seed(0)
        w = torch.randn(generator.layer_collection.numel(), dtype=torch.float64, device="cpu", generator=source)
        state = generator.flat_product(w.to(generator.device, generator._dtype()), batches())
        if self._state is None or not torch.equal(state, self._state) or not all_finite(state):
            self._state, self._count, self._rows = state, {}, None


def _in_dtype(batch: JacobianBatch, dtype: torch.dtype) -> JacobianBatch:
    """The Jacobians in the dtype of products, which outputs of more digits than the parameters do not have."""
    if batch.dtype == dtype:
        return batch
    return replace(batch, layers={name: layer.to(dtype) for name, layer in batch.layers.items()}, dtype=dtype)
