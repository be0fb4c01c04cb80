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
    """J as per-example gradients, the examples first in memory: all gradients of some examples are one matrix as they lie.

    Attributes:
        rows: Shape (n, c, d).
        layout: Of a Kronecker Jacobian, whose parameters come in the order (q, G, A + 1) of its matrices; None where they come
            in their own.
    """

    rows: Tensor
    layout: KroneckerLayout | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored."""
        return self.rows.nbytes

    def in_order(self) -> "GradientRows":
        """With all parameters in their own order."""
        if self.layout is None:
            return self
        sizes = (self.layout.groups, self.layout.outputs, self.layout.input_width)
        return GradientRows(self.layout.from_matrix(self.rows.unflatten(2, sizes)))


def gradient_rows(jacobian: LayerJacobian, dtype: torch.dtype, out: Tensor | None = None) -> GradientRows:
    """The per-example gradients of a Jacobian (c, n, d).

    Args:
        jacobian: J.
        dtype: That in which sums are kept.
        out: Shape (n, c, d), contiguous and of that dtype, to be filled; None for a new tensor.
    """
    c, n, d = jacobian.shape
    rows = torch.empty(n, c, d, dtype=dtype, device=jacobian.device) if out is None else out
    if not isinstance(jacobian, KroneckerJacobian):
        rows.copy_(jacobian.to_dense().transpose(0, 1))
        return GradientRows(rows)
    _form(jacobian, dtype, rows)
    return GradientRows(rows, jacobian.layout)


def _form(jacobian: KroneckerJacobian, dtype: torch.dtype, rows: Tensor) -> None:
    """Fill rows (n, c, d): one batched product writes the weights where they stay, and the bias goes into the gaps."""
    layout, (c, n, s, q, width) = jacobian.layout, jacobian.g.shape
    g = jacobian.g.to(dtype).permute(1, 3, 0, 4, 2).reshape(n, q, c * width, s)
    a = jacobian.a.to(dtype).transpose(1, 2)
    if q == 1:
        torch.bmm(g[:, 0], a[:, 0], out=rows.view(n, c * width, -1)[..., : layout.inputs])
    places = rows.view(n, c, q, width, layout.input_width)
    if q != 1:
        places[..., : layout.inputs] = (g @ a).view(n, q, c, width, -1).transpose(1, 2)
    if layout.has_bias:
        places[..., layout.inputs] = g.sum(3).view(n, q, c, width).transpose(1, 2)
