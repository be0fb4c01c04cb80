"""SumJacobian: one set of parameters used in places of different structure."""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian

__all__ = ["SumJacobian", "add"]


def add(first: LayerJacobian, second: LayerJacobian) -> LayerJacobian:
    """J + J' of parameters that are used in two places: in one structure if they share it, else as a sum of parts."""
    parts = first.parts if isinstance(first, SumJacobian) else (first,)
    for k, part in enumerate(parts):
        joined = part.joined(second)
        if joined is not None:
            parts = (*parts[:k], joined, *parts[k + 1 :])
            break
    else:
        parts = (*parts, second)
    return SumJacobian(parts) if len(parts) > 1 else parts[0]


@dataclass(frozen=True, eq=False, repr=False)
class SumJacobian(LayerJacobian):
    """J = sum_k J_k, as for an embedding tied to the output head.

    Products go part by part; second moments contain the cross terms of the parts. There is no Kronecker factorization.

    Attributes:
        parts: Jacobians of equal shape.
    """

    parts: tuple[LayerJacobian, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, n, d)."""
        return self.parts[0].shape

    @property
    def dtype(self) -> torch.dtype:
        """The parts' dtype."""
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        """The parts' device."""
        return self.parts[0].device

    def to_dense(self) -> Tensor:
        """J, shape (c, n, d)."""
        return reduce(torch.add, (part.to_dense() for part in self.parts))

    def to(self, dtype: torch.dtype) -> LayerJacobian:
        """The same J in another dtype."""
        return SumJacobian(tuple(part.to(dtype) for part in self.parts))

    def of_examples(self, examples: slice | Tensor) -> LayerJacobian | None:
        """J of some examples, if all parts say how."""
        parts = [part.of_examples(examples) for part in self.parts]
        known = tuple(part for part in parts if part is not None)
        return SumJacobian(known) if len(known) == len(parts) else None

    def jvp(self, v: Tensor) -> Tensor:
        """J v, shape (c, n), for v of shape (d,)."""
        return reduce(torch.add, (part.jvp(v) for part in self.parts))

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u, shape (d,), for u of shape (c, n)."""
        return reduce(torch.add, (part.vjp(u) for part in self.parts))

    def gram(self, other: LayerJacobian) -> Tensor:
        """J J'^T: the sum over all pairs of parts, shape (c, n, c', n')."""
        others = other.parts if isinstance(other, SumJacobian) else (other,)
        return reduce(torch.add, (part.gram(column) for part in self.parts for column in others))
