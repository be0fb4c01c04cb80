"""GradientRows: per-example gradients of a layer, laid out for products with those of other examples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.layout import KroneckerLayout

__all__ = ["GradientRows", "gradient_rows"]


@dataclass(frozen=True, eq=False)
class GradientRows:
    """J as per-example gradients, in whatever order of the parameters they are cheapest to form.

    Attributes:
        weight: Shape (c, n, d), or (c, n, q G A) of a Kronecker Jacobian, there with the examples first in memory.
        bias: Shape (c, n, q G) of a Kronecker Jacobian with a bias; else None.
        layout: Of a Kronecker Jacobian; None where `weight` has all parameters in their order.
    """

    weight: Tensor
    bias: Tensor | None = None
    layout: KroneckerLayout | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Shapes (c, n, d_k): the gradients in pieces, in the same order for all Jacobians of one layout."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def in_order(self) -> "GradientRows":
        """With all parameters in their order, in one piece."""
        if self.layout is None:
            return self
        sizes = (self.layout.groups, self.layout.outputs)
        bias = None if self.bias is None else self.bias.unflatten(2, sizes)
        return GradientRows(self.layout.pack(self.weight.unflatten(2, (*sizes, self.layout.inputs)), bias))


def gradient_rows(jacobian: LayerJacobian, dtype: torch.dtype) -> GradientRows:
    """The per-example gradients of a Jacobian (c, n, d), in the dtype in which sums are kept."""
    if not isinstance(jacobian, KroneckerJacobian):
        return GradientRows(jacobian.to_dense().to(dtype))
    c, n, s, q, width = jacobian.g.shape
    g = jacobian.g.to(dtype).permute(1, 3, 0, 4, 2).reshape(n, q, c * width, s)
    weight = (g @ jacobian.a.to(dtype).transpose(1, 2)).view(n, q, c, -1).transpose(1, 2).reshape(n, c, -1)
    bias = jacobian.g.to(dtype).sum(2).flatten(2) if jacobian.layout.has_bias else None
    return GradientRows(weight.transpose(0, 1), bias, jacobian.layout)
