"""Masks over shared positions: padding and ignored pixels, which Kronecker factors leave out."""

import torch
from torch import Tensor

__all__ = ["joined_masks"]


def joined_masks(first: Tensor | None, second: Tensor | None, first_g: Tensor, second_g: Tensor) -> Tensor | None:
    """The mask of the positions of two uses of a layer, one after the other; None counts all of them.

    Args:
        first: Shape (n, s), or None.
        second: Shape (n, t), or None.
        first_g: Output gradients of the first use, shape (c, n, s, ...).
        second_g: Those of the second, shape (c, n, t, ...).
    """
    if first is None and second is None:
        return None
    parts = [
        torch.ones(g.shape[1:3], dtype=torch.bool, device=g.device) if mask is None else mask
        for mask, g in ((first, first_g), (second, second_g))
    ]
    return torch.cat(parts, 1)
