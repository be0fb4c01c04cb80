"""The layers' Jacobians of two sets of examples, contracted in the cheapest order by counted cost."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.contraction import GramMethod, Pairing, blocks, comparing_is_cheaper, gram_costs
from nngeo_core.jacobians.gram import add_gram_of_positions_
from nngeo_core.jacobians.index import IndexJacobian
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_ntk.gradient_rows import GradientRows, gradient_rows

__all__ = ["Contraction", "Kept", "contraction", "kept_form"]


Kept: TypeAlias = LayerJacobian | GradientRows
"""A layer's Jacobian as it waits for its partners."""


def kept_form(jacobian: LayerJacobian, method: GramMethod | None, pairing: Pairing, dtype: torch.dtype) -> Kept:
    """The form in which a layer's Jacobian waits for its partners: as it is, or per-example gradients where these are cheaper.

    Costs are counted for the Jacobian with itself: more partners only spread the cost of forming the gradients.

    Args:
        jacobian: Shape (c, n, d).
        method: Forces an order where the structure leaves a choice.
        pairing: Which directions meet.
        dtype: That of sums.
    """
    if isinstance(jacobian, KroneckerJacobian):
        size = (*jacobian.shape[:2], jacobian.positions)
        chosen = method or _cheapest(gram_costs(size, size, jacobian.layout.outputs, jacobian.layout.inputs, pairing))
        return jacobian if chosen != "gradients" else gradient_rows(jacobian, dtype)
    if isinstance(jacobian, IndexJacobian) and method != "gradients":
        return jacobian
    return gradient_rows(jacobian, dtype)


def _cheapest(costs: Mapping[GramMethod, int]) -> GramMethod:
    return min(costs, key=costs.__getitem__)


class Contraction(ABC):
    """J J'^T of one layer, for chosen directions of both."""

    @abstractmethod
    def add_(self, total: Tensor, rows: slice, columns: slice, pairing: Pairing) -> None:
        """Add the contraction of some directions in place: shape (c, n, k, m), (c, n, m) or (n, m) as `pairing` says."""


def contraction(
    first: Kept, second: Kept, method: GramMethod | None, pairing: Pairing, dtype: torch.dtype
) -> Contraction:
    """How two Jacobians of one layer, in their kept forms, are contracted.

    Args:
        first: J, shape (c, n, d).
        second: J', shape (k, m, d).
        method: Forces an order where both are structured.
        pairing: Which directions will meet.
        dtype: That of the sums.
    """
    if isinstance(first, KroneckerJacobian) and isinstance(second, KroneckerJacobian) and first.layout == second.layout:
        rows, columns = ((*x.shape[:2], x.positions) for x in (first, second))
        costs = gram_costs(rows, columns, first.layout.outputs, first.layout.inputs, pairing)
        chosen = method or _cheapest(costs)
        if chosen == "positions":
            return _from_inputs(first, second, dtype)
        if chosen == "products":
            return _Products(first.to_dense().to(dtype), second, dtype)
    if isinstance(first, IndexJacobian) and isinstance(second, IndexJacobian):
        return _of_lookups(first, second, method, pairing, dtype)
    left, right = (x if isinstance(x, GradientRows) else gradient_rows(x, dtype) for x in (first, second))
    if left.layout != right.layout:
        left, right = left.in_order(), right.in_order()
    return _Gradients(left.parts, right.parts)


class _Gradients(Contraction):
    """Per-example gradients of both sides in pieces, shapes (c, n, d_k) and (k, m, d_k)."""

    def __init__(self, first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> None:
        self.pieces = tuple(zip(first, second, strict=True))

    def add_(self, total: Tensor, rows: slice, columns: slice, pairing: Pairing) -> None:
        for first, second in self.pieces:
            self._add_piece(total, first[rows], second[columns], pairing)

    def _add_piece(self, total: Tensor, first: Tensor, second: Tensor, pairing: Pairing) -> None:
        if pairing == "all":
            _add_all_products(total, first, second)
            return
        for place, (one, other) in enumerate(zip(first, second, strict=True)):
            (total if pairing == "summed" else total[place]).addmm_(one, other.T)


def _add_all_products(total: Tensor, first: Tensor, second: Tensor) -> None:
    """Add all products of rows (c, n, d) and (k, m, d) to a tensor (c, n, k, m), without a copy of either."""
    (c, n, d), (k, m, _) = first.shape, second.shape
    if first.is_contiguous() and second.is_contiguous():
        total.view(c * n, k * m).addmm_(first.view(c * n, d), second.view(k * m, d).T)
    elif first.transpose(0, 1).is_contiguous() and second.transpose(0, 1).is_contiguous():
        products = first.transpose(0, 1).reshape(n * c, d) @ second.transpose(0, 1).reshape(m * k, d).T
        total += products.view(n, c, m, k).permute(1, 0, 3, 2)
    else:  # some directions alone, of rows with the examples first
        for one, out in zip(first, total, strict=True):
            for place, other in enumerate(second):
                out[:, place].addmm_(one, other.T)


class _Positions(Contraction):
    """The Gram matrix of the inputs (q, n, s, m, t), formed once, and that of the output gradients."""

    def __init__(self, inputs: Tensor, g: Tensor, other: Tensor) -> None:
        self.inputs, self.g, self.other = inputs, g, other

    def add_(self, total: Tensor, rows: slice, columns: slice, pairing: Pairing) -> None:
        add_gram_of_positions_(total, self.inputs, self.g[rows], self.other[columns], pairing)


class _Products(Contraction):
    """Per-example gradients of the rows (c, n, d), each pushed through the columns' layer: a Jacobian-vector product."""

    def __init__(self, rows: Tensor, columns: KroneckerJacobian, dtype: torch.dtype) -> None:
        self.rows, self.layout = rows, columns.layout
        self.a, self.g = columns.a.to(dtype), columns.g.to(dtype)

    def add_(self, total: Tensor, rows: slice, columns: slice, pairing: Pairing) -> None:
        vectors, g = self.rows[rows], self.g[columns]
        if pairing == "all":
            self._push(total, vectors, g)
            return
        for place, (vector, one) in enumerate(zip(vectors, g, strict=True)):
            out = total if pairing == "summed" else total[place]
            self._push(out[None, :, None], vector.unsqueeze(0), one.unsqueeze(0))

    def _push(self, total: Tensor, vectors: Tensor, g: Tensor) -> None:
        """Add the products of vectors (c, n, d) and of the columns' directions g (k, m, t, q, G) to (c, n, k, m)."""
        _, m, t, q, width = g.shape
        for one, out in zip(vectors, total, strict=True):
            for some in blocks(len(one), m * t * q * width * g.element_size()):
                weight, bias = self.layout.unpack(one[some])
                # n, m examples; t position; q group; a input; g output; k direction
                response = torch.einsum("nqga,mtqa->nmtqg", weight, self.a)
                if bias is not None:
                    response += bias[:, None, None]
                out[some] += torch.einsum("nmtqg,kmtqg->nkm", response, g)


def _from_inputs(first: KroneckerJacobian, second: KroneckerJacobian, dtype: torch.dtype) -> _Positions:
    layout: KroneckerLayout = first.layout
    left, right = (x.a.to(dtype).flatten(0, 1).movedim(1, 0) for x in (first, second))  # (q, n s, A)
    inputs = left @ right.mT
    if layout.has_bias:
        inputs += 1
    sizes = (len(inputs), first.shape[1], first.positions, second.shape[1], second.positions)
    return _Positions(inputs.view(sizes), first.g.to(dtype), second.g.to(dtype))


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
    if compared:
        same = (index[:, :, None, None] == other[None, None]) & (index >= 0)[:, :, None, None]
        return _Positions(same.unsqueeze(0).to(dtype), *(x.g.unsqueeze(3).to(dtype) for x in (first, second)))
    left, right = (_in_vocabulary(x, common).to_dense().to(dtype) for x in (first, second))
    return _Gradients((left,), (right,))


def _in_vocabulary(jacobian: IndexJacobian, common: Tensor) -> IndexJacobian:
    """The Jacobian with respect to some rows of the table alone, given in ascending order."""
    if not len(common):
        return IndexJacobian(torch.full_like(jacobian.index, -1), jacobian.g, 1)
    place = torch.searchsorted(common, jacobian.index.contiguous()).clamp_(max=len(common) - 1)
    return IndexJacobian(torch.where(common[place] == jacobian.index, place, -1), jacobian.g, len(common))
