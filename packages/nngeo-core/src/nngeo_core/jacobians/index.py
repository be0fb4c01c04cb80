"""IndexJacobian: layers that look rows of a table up."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.gram import add_gram_of_positions_
from nngeo_core.jacobians.layout import KroneckerFactors, matrix_layout
from nngeo_core.jacobians.masks import joined_masks

__all__ = ["IndexJacobian"]


@dataclass(frozen=True, eq=False, repr=False)
class IndexJacobian(LayerJacobian):
    """J[c, n] = sum_s e_index[n, s] (x) g[c, n, s] for a table of V rows: a Kronecker Jacobian with one-hot inputs.

    Only rows that occur in an example are ever stored.

    Attributes:
        index: Rows looked up, shape (n, s); a negative index is a look-up without derivative (padding).
        g: Derivatives of the c directions with respect to what was looked up, shape (c, n, s, G).
        rows: V.
        mask: Which positions count in the Kronecker factors, shape (n, s); None for all.
    """

    index: Tensor
    g: Tensor
    rows: int
    mask: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, n, d) with d = V G."""
        return self.g.shape[0], self.g.shape[1], self.rows * self.g.shape[3]

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
        return int(self.index.nbytes + self.g.nbytes)

    @property
    def input_nbytes(self) -> int:
        """Bytes of the inputs."""
        return int(self.index.nbytes)

    def to(self, dtype: torch.dtype) -> "IndexJacobian":
        """The same J in another dtype."""
        return replace(self, g=self.g.to(dtype))

    def joined(self, other: LayerJacobian) -> LayerJacobian | None:
        """Two look-ups of one table are one with more positions."""
        if not isinstance(other, IndexJacobian) or other.rows != self.rows:
            return None
        mask = joined_masks(self.mask, other.mask, self.g, other.g)
        return IndexJacobian(torch.cat((self.index, other.index), 1), torch.cat((self.g, other.g), 2), self.rows, mask)

    def with_mask(self, mask: Tensor) -> LayerJacobian:
        """The same J with the mask, if it is for as many look-ups."""
        return replace(self, mask=mask) if mask.shape[1] == self.index.shape[1] else self

    def reduced(self) -> LayerJacobian:
        """J itself where every example looks one row up."""
        if self.index.shape[1] == 1:
            return self
        raise UnsupportedOperationError(
            f"averaged over {self.index.shape[1]} look-ups, the one-hot inputs of a table of {self.rows} rows have an input "
            f"factor of {self.rows} x {self.rows} entries; use 'kfac' or 'ekfac' for tables, whose input factor is diagonal"
        )

    def to_dense(self) -> Tensor:
        """J, shape (c, n, d)."""
        c, n, _, width = self.g.shape
        kept, g = self._kept()
        example = torch.arange(n, device=self.device).unsqueeze(1).expand_as(self.index)[kept]
        dense = self.g.new_zeros(c, n * self.rows, width)
        dense.index_add_(1, example * self.rows + self.index[kept], g)
        return dense.view(c, n, -1)

    def of_examples(self, examples: slice | Tensor) -> "IndexJacobian":
        """J of some examples."""
        return IndexJacobian(self.index[examples], self.g[:, examples], self.rows)

    def jvp(self, v: Tensor) -> Tensor:
        """J v, shape (c, n)."""
        kept = (self.index >= 0).unsqueeze(-1)
        response = v.view(self.rows, -1)[self.index.clamp(min=0)] * kept
        return torch.einsum("cnsg,nsg->cn", self.g, response)  # c direction, n example, s position, g output

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u, shape (d,)."""
        kept = self.index >= 0
        g = torch.einsum("cn,cnsg->nsg", u, self.g)[kept]
        return self.g.new_zeros(self.rows, self.g.shape[3]).index_add_(0, self.index[kept], g).flatten()

    def sum_of_squares(self) -> Tensor:
        """The diagonal of J^T J, shape (d,)."""
        total = self.g.new_zeros(self.rows * self.g.shape[3])
        self.add_squares_to(total)
        return total

    def add_squares_to(self, total: Tensor) -> None:
        """Add the diagonal of J^T J: only rows that were looked up are touched."""
        row, gradient = self._per_example_rows()
        total.view(self.rows, -1).index_add_(0, row, gradient.square().sum(0).to(total.dtype))

    def squared_norm(self) -> Tensor:
        """The trace of J^T J, 0-dimensional."""
        return self._per_example_rows()[1].square().sum()

    def gram(self, other: LayerJacobian) -> Tensor:
        """J J'^T, shape (c, n, c', n'): products of gradients where the indices are equal."""
        if not isinstance(other, IndexJacobian) or other.rows != self.rows:
            return super().gram(other)
        mine, theirs = self.index[:, :, None, None], other.index[None, None]
        same = ((mine == theirs) & (mine >= 0)).to(self.dtype)  # n, m examples; s, t positions: (n, s, m, t)
        total = self.g.new_zeros(*self.shape[:2], *other.shape[:2])
        add_gram_of_positions_(total, same.unsqueeze(0), self.g.unsqueeze(3), other.g.unsqueeze(3))
        return total

    def kronecker_factors(self, inputs: bool = True) -> KroneckerFactors:
        """The counts of the rows are the diagonal of the input factor, shape (1, V); G as for a matrix.

        Positions are the look-ups that have a derivative: an example's G is the average over those alone.
        """
        kept = self.index >= 0 if self.mask is None else (self.index >= 0) & self.mask
        g = self.g[:, kept]
        counts = self.g.new_zeros(1, self.rows)
        if inputs:
            counts += torch.bincount(self.index[kept], minlength=self.rows).to(self.dtype)
        positions = kept.sum(1, keepdim=True).expand_as(kept)[kept].to(self.dtype)
        rows = (g / positions.sqrt().unsqueeze(-1)).flatten(0, 1)
        outputs = (rows.T @ rows).unsqueeze(0)
        layout = matrix_layout({"weight": (self.rows, self.g.shape[3])}, transposed=True)
        return KroneckerFactors(counts, outputs, layout)

    def rotate(self, input_basis: Tensor | None, output_basis: Tensor) -> LayerJacobian:
        """The gradients g V of the same look-ups: the input factor is diagonal, its eigenvectors are unit vectors."""
        if input_basis is not None:
            raise UnsupportedOperationError(
                f"the inputs of a table of {self.rows} rows are unit vectors, which a basis of "
                f"{tuple(input_basis.shape)} would fill; rotate(None, output_basis) keeps them"
            )
        return replace(self, g=self.g @ output_basis[0])

    def _kept(self) -> tuple[Tensor, Tensor]:
        """Which positions have a derivative, shape (n, s), and their gradients, shape (c, kept, G)."""
        kept = self.index >= 0
        return kept, self.g[:, kept]

    def _per_example_rows(self) -> tuple[Tensor, Tensor]:
        """The non-zero rows of every example's gradient: their numbers (k,) and values (c, k, G)."""
        kept, g = self._kept()
        example = torch.arange(len(self.index), device=self.device).unsqueeze(1).expand_as(self.index)[kept]
        cells, place = torch.unique(example * self.rows + self.index[kept], return_inverse=True)
        gradient = self.g.new_zeros(len(g), len(cells), g.shape[2]).index_add_(1, place, g)
        return cells % self.rows, gradient
