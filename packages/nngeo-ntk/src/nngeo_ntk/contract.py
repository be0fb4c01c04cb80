"""The layers' Jacobians of two sets of examples, contracted in the cheapest order by counted cost."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.contraction import (
    GramMethod,
    Pairing,
    blocks,
    comparing_is_cheaper,
    gram_costs,
)
from nngeo_core.jacobians.index import IndexJacobian
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.sum import SumJacobian
from nngeo_ntk.gradient_rows import GradientRows, gradient_rows
from nngeo_ntk.place import Contraction, Place
from nngeo_ntk.positions import Positions, of_inputs
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
            return of_inputs(first, second, pairing, dtype, examples_first)
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
    return Positions(same, index.numel() * other.numel() * dtype.itemsize, g, other_g)


def _in_vocabulary(jacobian: IndexJacobian, common: Tensor) -> IndexJacobian:
    """The Jacobian with respect to some rows of the table alone, given in ascending order."""
    if not len(common):
        return IndexJacobian(torch.full_like(jacobian.index, -1), jacobian.g, 1)
    place = torch.searchsorted(common, jacobian.index.contiguous()).clamp_(max=len(common) - 1)
    return IndexJacobian(torch.where(common[place] == jacobian.index, place, -1), jacobian.g, len(common))
