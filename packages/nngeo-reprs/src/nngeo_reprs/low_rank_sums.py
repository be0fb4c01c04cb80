"""The rows of all Jacobians, as few as give the same matrix."""

import torch
from torch import Tensor

from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.parallel.group import Group
from nngeo_core.sweep.accumulator import Accumulator

__all__ = ["LowRankAccumulator", "fewer_rows"]


class LowRankAccumulator(Accumulator):
    """Collects the rows V^T J of all examples and directions; once they are twice as many as parameters, d others do."""

    def accumulate(self, batch: JacobianBatch) -> None:
        """Append the rows of the batch."""
        sizes = {layer_id: layer.numel() for layer_id, layer in self.layer_collection.items()}
        self._append(batch.to_dense(sizes).flatten(0, 1).to(batch.dtype))

    def _append(self, rows: Tensor) -> None:
        self.sums[f"rows.{len(self.sums)}"] = rows
        d = self.layer_collection.numel()
        if sum(map(len, self.sums.values())) >= 2 * d:
            self.sums = {"rows.0": fewer_rows(torch.cat(list(self.sums.values())))}

    def merge(self, other: Accumulator) -> None:
        """Append the rows of other examples.

        Raises:
            TypeError: The other one is of another representation.
            LayerCollectionMismatchError: It is about other parameters.
        """
        mine, self.sums = self.sums, {}
        try:
            super().merge(other)
        finally:
            theirs, self.sums = self.sums, mine
        for rows in theirs.values():
            self._append(rows)

    def reduce_(self, group: Group, what: str) -> None:
        """Gather the rows of all processes, d of each at most."""
        with group.together(what, self.n_examples) as counts:
            rows = fewer_rows(torch.cat(list(self.sums.values()))) if self.sums else None
        self.n_examples = sum(counts)
        self.sums = {}
        for theirs in group.gather(rows, what):
            if theirs is not None:
                self._append(theirs)

    def finalize(self) -> Tensor:
        """The rows n^-1/2 V^T J, shape (k, d) with k at most d."""
        rows = torch.cat(list(self.sums.values()))
        self.sums = {}
        return fewer_rows(rows).div(self.n_examples**0.5)


def fewer_rows(rows: Tensor) -> Tensor:
    """At most d rows with the same J^T J: the triangular factor of J, which loses no accuracy."""
    k, d = rows.shape
    if k <= d:
        return rows
    triangle: Tensor = torch.linalg.qr(rows, mode="r").R
    return triangle.contiguous()  # by rows, as a file gives it back: sums are the same, bit for bit
