"""J J'^T of Jacobians that are sums over positions, from the Gram matrix of their inputs, on plain tensors."""

from itertools import product

import torch
from torch import Tensor

from nngeo_core.jacobians.contraction import Pairing, blocks, in_sequence_is_cheaper

__all__ = ["add_gram_of_one_position_", "add_gram_of_positions_", "lies_as_matrix", "write_gram_of_one_position_"]

LARGE = 2**15
"""Entries from which each pair of positions has products of its own; summing pairs that lie side by side is slow."""


def add_gram_of_positions_(total: Tensor, inputs: Tensor, g: Tensor, other: Tensor, pairing: Pairing = "all") -> None:
    """Add sum_{s,t} (a . a') (g . g'), summed over groups, to a tensor, in place.

    Args:
        total: Shape (c, n, k, m) where "all" directions meet, (c, n, m) where "equal" ones do, (n, m) where those are
            "summed"; in the dtype of the others.
        inputs: a . a', shape (q, n, s, m, t).
        g: Shape (c, n, s, q, G).
        other: g', shape (k, m, t, q, G).
        pairing: Which directions meet.
    """
    add = {"all": _add_all, "equal": _add_equal, "summed": _add_summed}[pairing]
    for q, found in enumerate(inputs):
        add(total, found, g[:, :, :, q], other[:, :, :, q])


def write_gram_of_one_position_(total: Tensor, inputs: Tensor, g: Tensor, other: Tensor) -> None:
    """Write (a . a') (g . g') over what a tensor holds; without another one of its size where that is a matrix in memory.

    Args:
        total: Written to, shape (c, n, k, m).
        inputs: a . a', shape (n, m).
        g: Shape (c, n, w).
        other: g', shape (k, m, w).
    """
    (c, n, w), (k, m, _) = g.shape, other.shape
    if not lies_as_matrix(total):
        add_gram_of_one_position_(total.zero_(), inputs, g, other)
        return
    torch.mm(g.reshape(c * n, w), other.reshape(k * m, w).T, out=total.view(c * n, k * m))
    total *= inputs.unsqueeze(1)


def add_gram_of_one_position_(total: Tensor, inputs: Tensor, g: Tensor, other: Tensor) -> None:
    """Add (a . a') (g . g') in place by one product, in the order of the total's memory.

    Takes what `write_gram_of_one_position_` takes.
    """
    (c, n, w), (k, m, _) = g.shape, other.shape
    if lies_as_matrix(total):
        products = (g.reshape(c * n, w) @ other.reshape(k * m, w).T).view(c, n, k, m)
        total.addcmul_(products, inputs.unsqueeze(1))
        return
    left, right = (x.transpose(0, 1).reshape(-1, w) for x in (g, other))
    products = (left @ right.T).view(n, c, m, k)
    total.permute(1, 0, 3, 2).addcmul_(products, inputs[:, None, :, None].expand(n, 1, m, k).contiguous())


def lies_as_matrix(total: Tensor) -> bool:
    """Whether a tensor (c, n, k, m) lies in memory as a matrix (c n, k m) whose rows are contiguous."""
    (c, n, k, m), (by_c, by_n, by_k, by_m) = total.shape, total.stride()
    return by_m == 1 and by_n >= k * m and (c == 1 or by_c == n * by_n) and (k == 1 or by_k == m)


# c, k directions; n, m examples; s, t positions; w outputs of a group


def _add_all(total: Tensor, inputs: Tensor, g: Tensor, other: Tensor) -> None:
    (c, n, s, w), (k, m, t, _) = g.shape, other.shape
    if s == t == 1:
        add_gram_of_one_position_(total, inputs[:, 0, :, 0], g[:, :, 0], other[:, :, 0])
        return
    in_sequence = in_sequence_is_cheaper((c, n, s), (k, m, t), w)
    if not in_sequence and c * n * k * m >= LARGE:
        for rows in blocks(n, c * k * m * g.element_size()):
            for i, j in product(range(s), range(t)):
                add_gram_of_one_position_(total[:, rows], inputs[rows, i, :, j], g[:, rows, i], other[:, :, j])
        return
    each = (k * m * w if in_sequence else c * k * m * t) * s * g.element_size()
    for rows in blocks(n, each):
        for columns in blocks(m, max(1, each // max(1, m)) * (rows.stop - rows.start)):
            parts = inputs[rows, :, columns], g[:, rows], other[:, columns]
            total[:, rows, :, columns] += _in_sequence(*parts) if in_sequence else _entry_by_entry(*parts)


def _in_sequence(inputs: Tensor, g: Tensor, other: Tensor) -> Tensor:
    """The inputs' Gram matrix times one side's gradients, then the other's: (c, n, k, m)."""
    pushed = torch.einsum("nsmt,kmtw->nswkm", inputs, other)
    return torch.einsum("cnsw,nswkm->cnkm", g, pushed)


def _entry_by_entry(inputs: Tensor, g: Tensor, other: Tensor) -> Tensor:
    """Both Gram matrices of positions, multiplied entry by entry: (c, n, k, m)."""
    (c, n, s, w), (k, m, t, _) = g.shape, other.shape
    products = (g.reshape(-1, w) @ other.reshape(-1, w).T).view(c, n, s, k, m, t)
    return products.mul_(inputs.unsqueeze(2)).sum((2, 5))


def _add_equal(total: Tensor, inputs: Tensor, g: Tensor, other: Tensor) -> None:
    for out, rows, columns in zip(total, g, other, strict=True):
        _add_summed(out, inputs, rows.unsqueeze(0), columns.unsqueeze(0))


def _add_summed(total: Tensor, inputs: Tensor, g: Tensor, other: Tensor) -> None:
    (c, n, s, w), (_, m, t, _) = g.shape, other.shape
    left, right = (x.movedim(0, 2).reshape(*x.shape[1:3], c * w) for x in (g, other))
    if n * m >= LARGE:
        for rows in blocks(n, m * g.element_size()):
            for i, j in product(range(s), range(t)):
                total[rows].addcmul_(left[rows, i] @ right[:, j].T, inputs[rows, i, :, j])
        return
    for rows in blocks(n, s * m * t * g.element_size()):
        products = (left[rows].reshape(-1, c * w) @ right.reshape(m * t, c * w).T).view(-1, s, m, t)
        total[rows] += products.mul_(inputs[rows]).sum((1, 3))
