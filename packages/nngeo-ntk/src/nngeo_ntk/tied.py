"""Tied weights: the cross terms of a table's look-ups with products by the same weight, such as an embedding and its head."""

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.contraction import TOUCH, Pairing, blocks, gram_costs
from nngeo_core.jacobians.index import IndexJacobian
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.jacobians.sum import SumJacobian
from nngeo_ntk.place import Contraction, Place, within

__all__ = ["LookupsWithProducts", "parts_are_cheaper", "structured_parts"]


def structured_parts(jacobian: LayerJacobian) -> tuple[LayerJacobian, ...]:
    """The parts of a sum of look-ups and products by the table they look up; none if it is anything else."""
    parts = jacobian.parts if isinstance(jacobian, SumJacobian) else ()
    tables = [part for part in parts if isinstance(part, IndexJacobian)]
    heads = [part for part in parts if isinstance(part, KroneckerJacobian)]
    if len(tables) != 1 or len(parts) != 2 or not heads:
        return ()
    expected = KroneckerLayout(1, tables[0].rows, tables[0].g.shape[3], has_bias=False)
    return parts if heads[0].layout == expected else ()


def parts_are_cheaper(parts: tuple[LayerJacobian, ...], pairing: Pairing, examples: int) -> bool:
    """Whether J J^T of so many examples is cheaper part by part, with cross terms, than from gradients of the whole table."""
    c, _, numel = parts[0].shape
    costs, positions = 0, []
    for part in parts:
        s, width, inputs = (
            (part.positions, part.layout.outputs, part.layout.inputs)
            if isinstance(part, KroneckerJacobian)
            else (part.index.shape[1], part.g.shape[3], 1)
            if isinstance(part, IndexJacobian)
            else (1, numel, 1)
        )
        size = (c, examples, s)
        costs += gram_costs(size, size, width, inputs, pairing)["positions"]
        positions.append((s, min(width, inputs) if inputs > 1 else width))
    met, width = c * examples**2 * positions[0][0] * positions[1][0], min(width for _, width in positions)
    costs += 2 * met * (width + 4 * TOUCH + (c if pairing == "all" else 1))
    meeting = c * c if pairing == "all" else c
    return costs <= meeting * examples**2 * numel + 4 * TOUCH * c * examples * numel


class LookupsWithProducts(Contraction):
    """sum_{s,t} (g[c, n, s] . a'[m, t]) g'[k, m, t, index[n, s]]: one row of the table meets the products by all of it.

    Args:
        lookups: J.
        products: J', by the same table.
        dtype: That of the sums.
        turned: Whether the total has the products as its rows.
    """

    def __init__(
        self, lookups: IndexJacobian, products: KroneckerJacobian, dtype: torch.dtype, turned: bool = False
    ) -> None:
        self.index, self.g = lookups.index, lookups.g.to(dtype)
        self.a, self.other = products.a[:, :, 0].to(dtype), products.g[:, :, :, 0].to(dtype)
        self.turned = turned

    def add_(self, total: Tensor, rows: Place, columns: Place, pairing: Pairing) -> None:
        """Add the terms of some rows and columns in place, in blocks of examples."""
        if self.turned:
            rows, columns = columns, rows
            total = total.permute(2, 3, 0, 1) if pairing == "all" else total.mT
        (some, examples), (others, partners) = rows, columns
        (_, _, s, _), (_, t, _) = self.g.shape, self.a.shape
        c, k = (part.stop - part.start for part in (some, others))
        n, m = (part.stop - part.start for part in (examples, partners))
        each = (c + k) * s * t * self.g.element_size()
        for row in blocks(n, each * m):
            for column in blocks(m, each * (row.stop - row.start)):
                found = self._part((some, within(examples, row)), (others, within(partners, column)), pairing)
                place = {"all": (slice(None), row, slice(None), column), "equal": (slice(None), row, column)}
                total[place.get(pairing, (row, column))] += found

    def _part(self, rows: Place, columns: Place, pairing: Pairing) -> Tensor:
        index, g, a, other = self.index[rows[1]], self.g[rows], self.a[columns[1]], self.other[columns]
        # c, k directions; n, m examples; s, t positions; w width of the table
        met = torch.einsum("cnsw,mtw->nmcst", g, a) * (index >= 0)[:, None, None, :, None]
        looked_up = other[..., index.clamp(min=0)].permute(3, 1, 0, 4, 2)  # (n, m, k, s, t)
        if pairing == "all":
            return (met.flatten(3) @ looked_up.flatten(3).mT).permute(2, 0, 3, 1)
        equal = (met * looked_up).sum((3, 4)).permute(2, 0, 1)
        return equal.sum(0) if pairing == "summed" else equal
