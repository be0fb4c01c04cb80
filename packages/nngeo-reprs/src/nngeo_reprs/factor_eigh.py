"""Eigendecompositions of Kronecker factors, in which an eigenvalue that is rounding of zero is zero."""

import torch
from torch import Tensor

from nngeo_core.linear_algebra.symmetric import eigh

__all__ = ["factor_eigh"]

ROUNDING = 8
"""Units of rounding, of the largest eigenvalue, up to which an eigenvalue is none where no others are near."""
NEAR = 128
"""Units of rounding up to which others are near, W of them for wider matrices."""


def factor_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`eigh` of symmetric matrices (..., W, W), with eigenvalues set to zero that are rounding of it beyond doubt.

    A second moment of few examples is singular; what its decomposition has for zero enters 1 / (w + r), for a damping r, as if
    it were part of w. Beyond doubt: no other eigenvalue is below W eps times the largest (`NEAR` eps at least), where small
    ones that are none would be, and the eigenvectors that remain give every diagonal entry back, to so many eps times the
    root of it and of the largest eigenvalue. Inputs much smaller than others, whose own moments are small eigenvalues, are
    not taken for rounding by that.

    Raises:
        NonFiniteError: An entry is NaN or infinite.
    """
    values, vectors = eigh(matrix)
    if not values.numel():  # of a layer without inputs or outputs
        return values, vectors
    sizes, eps = values.abs(), torch.finfo(values.dtype).eps
    largest = sizes.amax(-1, keepdim=True)
    zero = sizes <= ROUNDING * eps * largest
    if zero.any():
        near = max(matrix.shape[-1], NEAR) * eps
        alone = (zero == (sizes <= near * largest)).all(-1, keepdim=True)
        cleared, diagonal = torch.where(zero, 0, values), matrix.diagonal(dim1=-2, dim2=-1)
        missing = diagonal - (vectors.square() @ cleared.unsqueeze(-1)).squeeze(-1)
        allowed = near * (largest.sqrt() * diagonal.abs().sqrt() + near * largest)
        restored = (missing.abs() <= allowed).all(-1, keepdim=True)
        values = torch.where(alone & restored, cleared, values)
    return values, vectors
