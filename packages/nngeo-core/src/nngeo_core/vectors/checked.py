"""What matrices and generators ask of a vector that they are given."""

import torch
from torch import Tensor

from nngeo_core.errors import ShapeError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.vectors.pvector import PVector

__all__ = ["checked_batch", "checked_flat"]


def checked_flat(v: PVector, layer_collection: LayerCollection, dtype: torch.dtype) -> Tensor:
    """The coordinates of a vector about these layers, in this dtype, shape (d,).

    Raises:
        TypeError: v is no PVector, or of a dtype that would lose digits.
        LayerCollectionMismatchError: v is about other layers.
    """
    if not isinstance(v, PVector):
        raise TypeError(
            f"expected a PVector, got {type(v).__name__}; PVector(layer_collection, vector_repr=tensor) makes one"
        )
    layer_collection.check_same(v.layer_collection)
    return _in_dtype(v.get_flat_representation(), dtype)


def checked_batch(v: Tensor, layer_collection: LayerCollection, dtype: torch.dtype) -> Tensor:
    """A batch of flat vectors about these layers, in this dtype, of its own shape (k, d) or (c, n, d).

    Raises:
        TypeError: v is a single vector without layers, or of a dtype that would lose digits.
        ShapeError: Its last dimension is not d.
    """
    if v.ndim < 2:
        raise TypeError(
            "expected a PVector, got Tensor; PVector(layer_collection, vector_repr=tensor) makes one, and a batch of "
            "vectors is a tensor (k, d) or (c, n, d)"
        )
    d = layer_collection.numel()
    if v.ndim > 3 or v.shape[-1] != d:
        raise ShapeError(f"a batch of vectors has the shape (k, {d}) or (c, n, {d}), got {tuple(v.shape)}")
    return _in_dtype(v, dtype)


def _in_dtype(flat: Tensor, dtype: torch.dtype) -> Tensor:
    if torch.promote_types(flat.dtype, dtype) != dtype:
        raise TypeError(
            f"the vector is {flat.dtype} and the matrix {dtype}; use v.to(dtype={dtype}), or compute the matrix "
            "from a model in the vector's dtype"
        )
    return flat.to(dtype)
