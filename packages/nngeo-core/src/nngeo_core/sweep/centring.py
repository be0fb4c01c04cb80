"""Centring: sums over gradients from which their mean is subtracted, in one pass."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.contraction import blocks
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.parallel.group import Group
from nngeo_core.sweep.accumulator import Accumulator

__all__ = ["CentredAccumulator"]

_MEAN, _INNER = "mean", "inner."


class CentredAccumulator(Accumulator):
    """The sums of another accumulator over g_i - m, for one gradient g_i of each example and their mean m.

    Parts of the data are put together as by Chan, Golub & LeVeque (1983): what k examples with mean m and l others with
    mean m' have between them is one more row, sqrt(k l / (k + l)) (m - m'). Only rows are squared, so that nothing cancels
    where the mean is large.

    Args:
        inner: What to fill.

    Raises:
        UnsupportedOperationError: Its sums are not linear in J^T J (KFAC), or need the layers' structure (the quasi-diagonal).
    """

    def __init__(self, inner: Accumulator) -> None:
        if not inner.signed or inner.structured or inner.passes > 1:
            raise UnsupportedOperationError(
                f"{type(inner).__name__} cannot subtract the mean gradient: its sums are not of rows alone. Use the "
                "dense, block-diagonal or diagonal representation, or centred=False"
            )
        super().__init__(inner.layer_collection)
        self.inner = inner

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add the centred gradients of the batch, of as many examples at a time as fit a block of memory."""
        if batch.total_directions != 1:
            raise UnsupportedOperationError(
                f"the mean is that of one gradient for each example, and these have {batch.total_directions} directions"
            )
        d, before = self.layer_collection.numel(), self.n_examples - batch.n_examples
        if _MEAN not in self.sums:
            self.sums[_MEAN] = torch.zeros(d, dtype=batch.dtype, device=batch.device)
        for some in blocks(batch.n_examples, d * batch.dtype.itemsize):
            rows = self._rows(batch, some)
            mean = rows.mean(0)
            self._put(torch.cat((rows - mean, self._between(before, len(rows), mean))))
            before += len(rows)
        self.inner.n_examples = self.n_examples

    def _rows(self, batch: JacobianBatch, some: slice) -> Tensor:
        """The gradients of some examples, shape (k, d)."""
        rows = torch.zeros(
            some.stop - some.start, self.layer_collection.numel(), dtype=batch.dtype, device=batch.device
        )
        places = self.layer_collection.slices()
        for layer_id, jacobian in batch.layers.items():
            rows[:, places[layer_id]] = jacobian.dense_rows(some)[0]
        return rows

    def _between(self, before: int, count: int, mean: Tensor) -> Tensor:
        """The row (1, d) between `before` examples and `count` others with this mean; their common mean replaces the old."""
        difference = mean - self.sums[_MEAN]
        self.sums[_MEAN] += difference * (count / (before + count))
        return (difference * sqrt(before * count / (before + count))).unsqueeze(0)

    def _put(self, rows: Tensor) -> None:
        """Have the inner accumulator square some rows (k, d), which it is not to count."""
        places = self.layer_collection.slices()
        layers = {layer_id: DenseJacobian(rows[None, :, place]) for layer_id, place in places.items()}
        self.inner.accumulate(JacobianBatch(layers, len(rows), slice(1, 2), 2, rows.dtype, rows.device))

    def finalize(self) -> Any:
        """The data of the inner accumulator's matrix, averaged over examples."""
        return self.inner.finalize()

    def merge(self, other: Accumulator) -> None:
        """Add the sums of other examples.

        Raises:
            TypeError: The other one is not centred, or of another representation.
            LayerCollectionMismatchError: It is about other parameters.
        """
        if not isinstance(other, CentredAccumulator):
            raise TypeError(f"centred sums merge with their own kind, got {type(other).__name__}")
        self.inner.merge(other.inner)
        if other.n_examples and self.n_examples:
            self._put(self._between(self.n_examples, other.n_examples, other.sums[_MEAN]))
        elif other.n_examples:
            self.sums[_MEAN] = other.sums[_MEAN].clone()
        self.n_examples += other.n_examples

    def reduce_(self, group: Group, what: str) -> None:
        """Take in the sums of all processes: each adds the row between its mean and the common one, sqrt(k) (m_r - m)."""
        own, mine = self.n_examples, self.sums.get(_MEAN)
        with group.together(what, own) as counts:
            pass
        self.n_examples = sum(counts)
        weighted = {} if mine is None else {_MEAN: mine * (own / max(1, self.n_examples))}
        self.sums = group.sum_named(weighted, what)
        if mine is not None and own:
            self._put((sqrt(own) * (mine - self.sums[_MEAN])).unsqueeze(0))
        self.inner.reduce_(group, what)

    def identity(self) -> Any:
        """The class, and what it fills."""
        return [super().identity(), self.inner.identity()]

    def state_dict(self) -> dict[str, Tensor]:
        """The example count, the mean and the inner sums."""
        return {**super().state_dict(), **{f"{_INNER}{key}": part for key, part in self.inner.state_dict().items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        inner = {key.removeprefix(_INNER): part for key, part in state.items() if key.startswith(_INNER)}
        self.inner.load_state_dict(inner)
