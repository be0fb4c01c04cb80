"""DenseJacobian: a Jacobian without structure."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian

__all__ = ["DenseJacobian"]


@dataclass(frozen=True, eq=False, repr=False)
class DenseJacobian(LayerJacobian):
    """J stored as it is.

    Attributes:
        tensor: Shape (c, n, d).
    """

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, n, d)."""
        c, n, d = self.tensor.shape
        return c, n, d

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        return self.tensor.dtype

    @property
    def device(self) -> torch.device:
        """The tensor's device."""
        return self.tensor.device

    def to_dense(self) -> Tensor:
        """The stored tensor itself."""
        return self.tensor

    def to(self, dtype: torch.dtype) -> "DenseJacobian":
        """The same J in another dtype."""
        return DenseJacobian(self.tensor.to(dtype))

    def of_examples(self, examples: slice | Tensor) -> "DenseJacobian":
        """J of some examples."""
        return DenseJacobian(self.tensor[:, examples])

    def joined(self, other: LayerJacobian) -> LayerJacobian | None:
        """Dense Jacobians add up entry by entry."""
        return DenseJacobian(self.tensor + other.tensor) if isinstance(other, DenseJacobian) else None
