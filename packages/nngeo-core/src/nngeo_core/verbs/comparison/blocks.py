"""The diagonal blocks of a matrix as a matrix that solves by layer."""

import torch
from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.matrices.pmat import PMat
from nngeo_core.vectors.pvector import PVector

__all__ = ["blocks_of", "is_block_diagonal"]

LARGEST_BLOCKS = 2**28
"""Entries that all blocks of a matrix may have together, where they have to be formed: 1 GiB in float32."""
_BASE = 16


def blocks_of(matrix: PMat, v: Tensor) -> PMat:
    """The matrix itself if nothing in it is between layers; else its blocks, formed.

    Args:
        matrix: A.
        v: A vector that has no zeros, shape (d,).

    Raises:
        UnsupportedOperationError: The blocks are too large to be formed, or the representation does not give them.
    """
    if is_block_diagonal(matrix, v):
        return matrix
    entries = sum(layer.numel() ** 2 for layer in matrix.layer_collection.values())
    if entries > LARGEST_BLOCKS:
        raise UnsupportedOperationError(
            f"a {type(matrix).__name__} has entries between layers, and the blocks within layers, which would have to be "
            f"formed, have {entries:.1e} entries, more than {LARGEST_BLOCKS:.1e}"
        )
    found: PMat = matrix.convert("blockdiag")
    return found


def is_block_diagonal(matrix: PMat, v: Tensor) -> bool:
    """Whether the product with v, scaled by another power of two in each layer, is the product with v so scaled.

    Powers of two leave no rounding: what has nothing between layers passes to the last digit. Every two layers have
    different powers in one of the tests, of which there are 1 up to 16 layers, 2 up to 256, and so on.
    """
    places, d = matrix.layer_collection.slices(), matrix.layer_collection.numel()
    product, step = _product(matrix, v), 1
    while step < len(places):
        scale = torch.empty(d, dtype=v.dtype, device=v.device)
        for number, place in enumerate(places.values()):
            scale[place] = 2.0 ** (number // step % _BASE - _BASE // 2)
        difference = _product(matrix, v * scale) - product * scale
        if bool((difference.abs() > 8 * torch.finfo(v.dtype).eps * (product * scale).abs()).any()):
            return False
        step *= _BASE
    return True


def _product(matrix: PMat, v: Tensor) -> Tensor:
    return matrix.mv(PVector(matrix.layer_collection, vector_repr=v)).get_flat_representation()
