"""The layers' Jacobians of two sets of examples, contracted in the cheapest order by counted cost."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.contraction import (
    BLOCK_BYTES,
    GramMethod,
    Pairing,
    blocks,
    comparing_is_cheaper,
    gram_costs,
)
from nngeo_core.jacobians.gram import add_gram_of_positions_, write_gram_of_one_position_
from nngeo_core.jacobians.index import IndexJacobian
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.sum import SumJacobian
from nngeo_ntk.gradient_rows import GradientRows, gradient_rows
from nngeo_ntk.place import Contraction, Place, within
from nngeo_ntk.tied import LookupsWithProducts, parts_are_cheaper, structured_parts

__all__ = ["Kept", "contraction", "waits_as_gradients"]


Kept: TypeAlias = LayerJacobian | GradientRows
"""A layer's Jacobian as it waits for its partners."""


def waits_as_gradients(jacobian: LayerJacobian, method: GramMethod | None, pairing: Pairing, examples: int) -> bool:
    """Whether a layer's Jacobian is to wait for its partners as per-example gradients, and not as it is.

    Args:
        jacobian: Shape (c, n, d).
        method: Forces an order where the structure leaves a choice.
        pairing: Which directions meet.
        examples: How many there are in all, to count the cost of the whole kernel.
    """
    if isinstance(jacobian, KroneckerJacobian):
        size = (jacobian.shape[0], examples, jacobian.positions)
        costs = gram_costs(size, size, jacobian.layout.outputs, jacobian.layout.inputs, pairing)
        return (method or _cheapest(costs)) == "gradients"
    parts = structured_parts(jacobian)
    if parts:
        return method == "gradients" or (method is None and not parts_are_cheaper(parts, pairing, examples))
    return not isinstance(jacobian, IndexJacobian) or method == "gradients"


def _cheapest(costs: Mapping[GramMethod, int]) -> GramMethod:
    return min(costs, key=costs.__getitem__)


def contraction(
    first: Kept,
    second: Kept,
    method: GramMethod | None,
    pairing: Pairing,
    dtype: torch.dtype,
    examples_first: bool = False,
) -> Contraction:
    """How two Jacobians of one layer, in their kept forms, are contracted.

    Args:
        first: J, shape (c, n, d).
        second: J', shape (k, m, d).
        method: Forces an order where both are structured.
        pairing: Which directions will meet.
        dtype: That of the sums.
        examples_first: Whether totals will lie in memory with their examples first.
    """
    if isinstance(first, KroneckerJacobian) and isinstance(second, KroneckerJacobian) and first.layout == second.layout:
        rows, columns = ((*x.shape[:2], x.positions) for x in (first, second))
        costs = gram_costs(rows, columns, first.layout.outputs, first.layout.inputs, pairing)
        chosen = method or _cheapest(costs)
        if chosen == "positions":
            return _Positions.of_inputs(first, second, dtype, examples_first)
        if chosen == "products":
            return _Products(first.to_dense().to(dtype), second, dtype)
    if isinstance(first, IndexJacobian) and isinstance(second, IndexJacobian):
        return _of_lookups(first, second, method, pairing, dtype)
    if isinstance(first, SumJacobian) and isinstance(second, SumJacobian):
        mine, theirs = structured_parts(first), structured_parts(second)
        if mine and theirs:
            return _Parts([_part(one, other, method, pairing, dtype) for one in mine for other in theirs])
    left, right = (x if isinstance(x, GradientRows) else gradient_rows(x, dtype) for x in (first, second))
    if left.layout != right.layout:
        left, right = left.in_order(), right.in_order()
    return _Gradients(left.rows, right.rows)


def _part(
    first: LayerJacobian, second: LayerJacobian, method: GramMethod | None, pairing: Pairing, dtype: torch.dtype
) -> Contraction:
    """Two parts of what a tied weight does."""
    if isinstance(first, IndexJacobian) and isinstance(second, KroneckerJacobian):
        return LookupsWithProducts(first, second, dtype)
    if isinstance(first, KroneckerJacobian) and isinstance(second, IndexJacobian):
        return LookupsWithProducts(second, first, dtype, turned=True)
    return contraction(first, second, method, pairing, dtype)


class _Parts(Contraction):
    """The sum over all pairs of parts."""

    def __init__(self, parts: Sequence[Contraction]) -> None:
        self.parts = parts

    def add_(self, total: Tensor, rows: Place, columns: Place, pairing: Pairing) -> None:
        for part in self.parts:
            part.add_(total, rows, columns, pairing)


class _Gradients(Contraction):
    """Per-example gradients of both sides, shapes (n, c, d) and (m, k, d)."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second

    def add_(self, total: Tensor, rows: Place, columns: Place, pairing: Pairing) -> None:
        (some, examples), (others, partners) = rows, columns
        first, second = self.first[examples, some], self.second[partners, others]
        if pairing == "all":
            _add_all_products(total, first, second)
            return
        for k in range(first.shape[1]):
            (total if pairing == "summed" else total[k]).addmm_(first[:, k], second[:, k].T)


def _add_all_products(total: Tensor, first: Tensor, second: Tensor) -> None:
    """Add all products of rows (n, c, d) and (m, k, d) to a tensor (c, n, k, m), in place where its examples lie first."""
    (n, c, _), (m, k, _) = first.shape, second.shape
    left, right = first.flatten(0, 1), second.flatten(0, 1)
    examples_first = total.permute(1, 0, 3, 2)
    if examples_first.is_contiguous():
        examples_first.view(n * c, m * k).addmm_(left, right.T)
    else:
        examples_first += (left @ right.T).view(n, c, m, k)


class _Positions(Contraction):
    """The Gram matrix of the inputs (q, n, s, m, t), formed once where it fits a block, and that of the output gradients."""

    def __init__(self, inputs: Callable[[slice, slice], Tensor], size: int, g: Tensor, other: Tensor) -> None:
        """Take a function of some examples on both sides, the bytes of the whole, and both sides' gradients."""
        n, m = g.shape[1], other.shape[1]
        self.g, self.other, self.inputs = g, other, inputs
        self.pair_bytes = size // max(1, n * m)
        self.whole = inputs(slice(0, n), slice(0, m)) if size <= BLOCK_BYTES else None

    @classmethod
    def of_inputs(
        cls, first: KroneckerJacobian, second: KroneckerJacobian, dtype: torch.dtype, examples_first: bool
    ) -> "_Positions":
        """The products of inputs, and 1 with a bias; gradients lie as the total will, so that no tile has to copy them."""
        one, other, has_bias = first.a.to(dtype), second.a.to(dtype), first.layout.has_bias

        def inputs(rows: slice, columns: slice) -> Tensor:
            left, right = (x.flatten(0, 1).movedim(1, 0) for x in (one[rows], other[columns]))  # (q, n s, A)
            products = left @ right.mT
            if has_bias:
                products += 1
            return products.view(len(products), len(one[rows]), first.positions, len(other[columns]), second.positions)

        positions = [x.shape[0] * x.shape[1] for x in (one, other)]
        size = one.shape[2] * positions[0] * positions[1] * dtype.itemsize
        g, other_g = first.g.to(dtype), second.g.to(dtype)
        if examples_first and first.positions == second.positions == 1:
            g, other_g = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (g, other_g))
        return cls(inputs, size, g, other_g)

    def write_(self, total: Tensor, rows: Place, columns: Place, pairing: Pairing) -> None:
        if pairing != "all" or not total.is_contiguous() or self.whole is None or not self._one_position():
            super().write_(total, rows, columns, pairing)
            return
        inputs = self.whole[0, rows[1], 0, columns[1], 0]
        write_gram_of_one_position_(total, inputs, self.g[rows][:, :, 0, 0], self.other[columns][:, :, 0, 0])

    def _one_position(self) -> bool:
        """Whether the layer has one group, and one position on either side."""
        return self.g.shape[2:4] == self.other.shape[2:4] == (1, 1)

    def add_(self, total: Tensor, rows: Place, columns: Place, pairing: Pairing) -> None:
        (some, examples), (others, partners) = rows, columns
        g, other = self.g[some, examples], self.other[others, partners]
        if self.whole is not None:
            add_gram_of_positions_(total, self.whole[:, examples, :, partners], g, other, pairing)
            return
        m = partners.stop - partners.start
        for row in blocks(g.shape[1], self.pair_bytes * m):
            for column in blocks(m, self.pair_bytes * (row.stop - row.start)):
                inputs = self.inputs(within(examples, row), within(partners, column))
                place = {"all": (slice(None), row, slice(None), column), "equal": (slice(None), row, column)}
                part = total[place.get(pairing, (row, column))]
                add_gram_of_positions_(part, inputs, g[:, row], other[:, column], pairing)


class _Products(Contraction):
    """Per-example gradients of the rows (c, n, d), each pushed through the columns' layer: a Jacobian-vector product."""

    def __init__(self, rows: Tensor, columns: KroneckerJacobian, dtype: torch.dtype) -> None:
        self.rows, self.layout = rows, columns.layout
        self.a, self.g = columns.a.to(dtype), columns.g.to(dtype)

    def add_(self, total: Tensor, rows: Place, columns: Place, pairing: Pairing) -> None:
        vectors, g, a = self.rows[rows], self.g[columns], self.a[columns[1]]
        if pairing == "all":
            self._push(total, vectors, a, g)
            return
        for place, (vector, one) in enumerate(zip(vectors, g, strict=True)):
            out = total if pairing == "summed" else total[place]
            self._push(out[None, :, None], vector.unsqueeze(0), a, one.unsqueeze(0))

    def _push(self, total: Tensor, vectors: Tensor, a: Tensor, g: Tensor) -> None:
        """Add the products of vectors (c, n, d) and of the columns' directions g (k, m, t, q, G) to (c, n, k, m)."""
        _, m, t, q, width = g.shape
        for one, out in zip(vectors, total, strict=True):
            for some in blocks(len(one), m * t * q * width * g.element_size()):
                weight, bias = self.layout.unpack(one[some])
                # n, m examples; t position; q group; a input; g output; k direction
                response = torch.einsum("nqga,mtqa->nmtqg", weight, a)
                if bias is not None:
                    response += bias[:, None, None]
                out[some] += torch.einsum("nmtqg,kmtqg->nkm", response, g)


def _of_lookups(
    first: IndexJacobian, second: IndexJacobian, method: GramMethod | None, pairing: Pairing, dtype: torch.dtype
) -> Contraction:
    """Look-ups by which indices are equal, or as gradients of those rows alone that occur on both sides."""
    index, other = (x.index.contiguous() for x in (first, second))
    common = torch.unique(index)
    common = common[(common >= 0) & torch.isin(common, other)]
    rows, columns = ((*x.shape[:2], x.index.shape[1]) for x in (first, second))
    compared = method == "positions" or (
        method is None and comparing_is_cheaper(rows, columns, first.g.shape[3], len(common), pairing)
    )
    if not compared:
        left, right = (_in_vocabulary(x, common) for x in (first, second))
        return _Gradients(gradient_rows(left, dtype).rows, gradient_rows(right, dtype).rows)

    def same(some: slice, others: slice) -> Tensor:
        mine, theirs = index[some, :, None, None], other[None, None, others]
        return ((mine == theirs) & (mine >= 0)).unsqueeze(0).to(dtype)

    g, other_g = (x.g.unsqueeze(3).to(dtype) for x in (first, second))
    return _Positions(same, index.numel() * other.numel() * dtype.itemsize, g, other_g)


def _in_vocabulary(jacobian: IndexJacobian, common: Tensor) -> IndexJacobian:
    """The Jacobian with respect to some rows of the table alone, given in ascending order."""
    if not len(common):
        return IndexJacobian(torch.full_like(jacobian.index, -1), jacobian.g, 1)
    place = torch.searchsorted(common, jacobian.index.contiguous()).clamp_(max=len(common) - 1)
    return IndexJacobian(torch.where(common[place] == jacobian.index, place, -1), jacobian.g, len(common))
