"""J J'^T from the Gram matrix of a layer's inputs, and that of its output gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from nngeo_core.jacobians.contraction import BLOCK_BYTES, Pairing, blocks
from nngeo_core.jacobians.gram import (
    add_gram_of_one_position_,
    add_gram_of_positions_,
    write_gram_of_one_position_,
)
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_ntk.place import Contraction, Place, within

__all__ = ["Positions", "of_inputs"]


def of_inputs(
    first: KroneckerJacobian, second: KroneckerJacobian, pairing: Pairing, dtype: torch.dtype, examples_first: bool
) -> Contraction:
    """How two Jacobians of one layout meet: the products of their inputs, plus 1 with a bias, and of their output gradients.

    Args:
        first: J.
        second: J'.
        pairing: Which directions will meet.
        dtype: That of the sums.
        examples_first: Whether totals will lie in memory with their examples first; gradients then do so too, so that no tile
            has to copy them.
    """
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
    if first.positions != 1 or second.positions != 1:
        return Positions(inputs, size, g, other_g)
    if pairing == "all" and one.shape[2] == 1 and _are_shared(g) and _are_shared(other_g):
        products = g[:, 0, 0, 0] @ other_g[:, 0, 0, 0].T
        if products.count_nonzero() <= max(products.shape):
            return _SameGradients(inputs, size, g, other_g, products)
    if examples_first:
        g, other_g = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (g, other_g))
    kind = _OnePosition if one.shape[2] == 1 and size <= BLOCK_BYTES else Positions
    return kind(inputs, size, g, other_g)


def _are_shared(g: Tensor) -> bool:
    """Whether several examples have the same output gradients (c, n, ...); most often the first two show that they do not."""
    return g.shape[1] > 1 and torch.equal(g[:, 0], g[:, 1]) and torch.equal(g, g[:, :1].expand_as(g))


class Positions(Contraction):
    """The Gram matrix of the inputs (q, n, s, m, t), formed once where it fits a block, and that of the output gradients."""

    def __init__(self, inputs: Callable[[slice, slice], Tensor], size: int, g: Tensor, other: Tensor) -> None:
        """Take a function of some examples on both sides, the bytes of the whole, and both sides' gradients."""
        n, m = g.shape[1], other.shape[1]
        self.g, self.other, self.inputs = g, other, inputs
        self.pair_bytes = size // max(1, n * m)
        self.at_once = size <= BLOCK_BYTES
        if self.at_once:
            whole = inputs(slice(0, n), slice(0, m))
            self.inputs = lambda rows, columns: whole[:, rows, :, columns]

    def add_(self, total: Tensor, rows: Place, columns: Place, pairing: Pairing) -> None:
        """Add them in blocks of examples, unless the Gram matrix of all inputs is there."""
        (some, examples), (others, partners) = rows, columns
        g, other = self.g[some, examples], self.other[others, partners]
        if self.at_once:
            add_gram_of_positions_(total, self.inputs(examples, partners), g, other, pairing)
            return
        m = partners.stop - partners.start
        for row in blocks(g.shape[1], self.pair_bytes * m):
            for column in blocks(m, self.pair_bytes * (row.stop - row.start)):
                inputs = self.inputs(within(examples, row), within(partners, column))
                place = {"all": (slice(None), row, slice(None), column), "equal": (slice(None), row, column)}
                part = total[place.get(pairing, (row, column))]
                add_gram_of_positions_(part, inputs, g[:, row], other[:, column], pairing)


class _OnePosition(Positions):
    """Without groups and positions, the Gram matrix of the inputs (n, m) being there: one product of gradients a tile."""

    def __init__(self, inputs: Callable[[slice, slice], Tensor], size: int, g: Tensor, other: Tensor) -> None:
        super().__init__(inputs, size, g, other)
        self.pairs = self.inputs(slice(0, g.shape[1]), slice(0, other.shape[1]))[0, :, 0, :, 0]
        self.rows, self.columns = g[:, :, 0, 0], other[:, :, 0, 0]

    def add_(self, total: Tensor, rows: Place, columns: Place, pairing: Pairing) -> None:
        if pairing == "all":
            add_gram_of_one_position_(total, self.pairs[rows[1], columns[1]], self.rows[rows], self.columns[columns])
        else:
            super().add_(total, rows, columns, pairing)

    def write_(self, total: Tensor, rows: Place, columns: Place, pairing: Pairing) -> None:
        if pairing == "all":
            write_gram_of_one_position_(total, self.pairs[rows[1], columns[1]], self.rows[rows], self.columns[columns])
        else:
            super().write_(total, rows, columns, pairing)


class _SameGradients(Positions):
    """One position, and output gradients that all examples share, as a last layer's do: few directions meet of all pairs.

    Where their product P[c, k] is not zero, n m additions take the place of n m products of gradients.
    """

    def __init__(
        self, inputs: Callable[[slice, slice], Tensor], size: int, g: Tensor, other: Tensor, products: Tensor
    ) -> None:
        super().__init__(inputs, size, g, other)
        self.meeting: dict[int, list[tuple[int, float]]] = {}
        for (c, k), product in zip(products.nonzero().tolist(), products[products != 0].tolist(), strict=True):
            self.meeting.setdefault(c, []).append((k, product))

    def add_(self, total: Tensor, rows: Place, columns: Place, pairing: Pairing) -> None:
        (some, examples), (others, partners) = rows, columns
        for c in range(some.start, some.stop):
            for k, product in self.meeting.get(c, ()):
                if others.start <= k < others.stop:
                    pairs = self.inputs(examples, partners)[0, :, 0, :, 0]
                    total[c - some.start, :, k - others.start].add_(pairs, alpha=product)
