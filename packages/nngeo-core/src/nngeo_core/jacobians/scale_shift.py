"""ScaleShiftJacobian: the affine parameters of normalisation layers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.layout import KroneckerLayout

__all__ = ["ScaleShiftJacobian"]


@dataclass(frozen=True, eq=False, repr=False)
class ScaleShiftJacobian(LayerJacobian):
    """J[c, n] = (sum_s g[c, n, s] * x_hat[n, s], sum_s g[c, n, s]): a scale for each channel, then its shift.

    Attributes:
        x_hat: Normalised inputs, shape (n, s, C).
        g: Derivatives of the c directions with respect to the layer's outputs, shape (c, n, s, C).
        has_bias: Whether there is a shift.
    """

    x_hat: Tensor
    g: Tensor
    has_bias: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, n, d) with d = 2 C, or C without a shift."""
        return self.g.shape[0], self.g.shape[1], self.g.shape[3] * (1 + self.has_bias)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the output gradients."""
        return self.g.dtype

    @property
    def device(self) -> torch.device:
        """The device of the output gradients."""
        return self.g.device

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored."""
        return int(self.x_hat.nbytes + self.g.nbytes)

    @property
    def input_nbytes(self) -> int:
        """Bytes of the inputs."""
        return int(self.x_hat.nbytes)

    def to(self, dtype: torch.dtype) -> "ScaleShiftJacobian":
        """The same J in another dtype."""
        return ScaleShiftJacobian(self.x_hat.to(dtype), self.g.to(dtype), self.has_bias)

    def of_examples(self, examples: slice | Tensor) -> "ScaleShiftJacobian":
        """J of some examples."""
        return ScaleShiftJacobian(self.x_hat[examples], self.g[:, examples], self.has_bias)

    def joined(self, other: LayerJacobian) -> LayerJacobian | None:
        """Repeated calls are so many more positions."""
        if not isinstance(other, ScaleShiftJacobian) or other.has_bias != self.has_bias:
            return None
        x_hat = torch.cat((self.x_hat, other.x_hat), 1)
        return ScaleShiftJacobian(x_hat, torch.cat((self.g, other.g), 2), self.has_bias)

    def to_dense(self) -> Tensor:
        """J, shape (c, n, d)."""
        scale = self._scale_gradients()
        return torch.cat((scale, self.g.sum(2)), 2) if self.has_bias else scale

    @property
    def pairs(self) -> KroneckerLayout | None:
        """Each channel is an output with one weight."""
        return KroneckerLayout(1, self.g.shape[3], 1, has_bias=True) if self.has_bias else None

    def bias_cross(self) -> Tensor:
        """The entries of J^T J between each scale and its shift, shape (C,)."""
        if not self.has_bias:
            return super().bias_cross()
        return (self._scale_gradients() * self.g.sum(2)).sum((0, 1))

    def _scale_gradients(self) -> Tensor:
        """Shape (c, n, C)."""
        return torch.einsum("cnsk,nsk->cnk", self.g, self.x_hat)  # c direction, n example, s position, k channel
