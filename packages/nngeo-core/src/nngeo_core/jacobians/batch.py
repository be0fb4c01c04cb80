"""JacobianBatch: what a generator hands to accumulators."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian

__all__ = ["JacobianBatch"]


@dataclass(frozen=True)
class JacobianBatch:
    """The Jacobians of some examples, for a slice of their output directions.

    Attributes:
        layers: One Jacobian (c, n, d_l) for each layer; a layer that the model did not call is absent, its derivative zero.
        n_examples: n.
        directions: The slice of output directions; c = stop - start.
        total_directions: How many directions the examples have in all.
        dtype: The dtype in which sums over examples are kept.
        device: Where the tensors are.
        sign: 1, or -1 for directions that enter with a minus sign.
    """

    layers: Mapping[str, LayerJacobian]
    n_examples: int
    directions: slice
    total_directions: int
    dtype: torch.dtype
    device: torch.device
    sign: int = 1

    @property
    def first_slice(self) -> bool:
        """Whether to add now what does not depend on the directions: the example count, KFAC's input factors."""
        return bool(self.directions.start == 0)

    def to_dense(self, sizes: Mapping[str, int]) -> Tensor:
        """All layers side by side, shape (c, n, d), for the number of parameters of each layer in order."""
        c = self.directions.stop - self.directions.start
        parts = [
            self.layers[layer_id].to_dense()
            if layer_id in self.layers
            else torch.zeros(c, self.n_examples, size, dtype=self.dtype, device=self.device)
            for layer_id, size in sizes.items()
        ]
        return torch.cat(parts, 2)
