"""What matrices and generators ask of a vector that they are given."""

import torch
from torch import Tensor

from nngeo_core.layers.collection import LayerCollection
from nngeo_core.vectors.pvector import PVector

__all__ = ["checked_flat"]


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
    flat = v.get_flat_representation()
    if torch.promote_types(flat.dtype, dtype) != dtype:
        raise TypeError(
            f"the vector is {flat.dtype} and the matrix {dtype}; use v.to(dtype={dtype}), or compute the matrix "
            "from a model in the vector's dtype"
        )
    return flat.to(dtype)
