"""Symmetric matrices: Gram sums at half the multiplications, eigendecompositions that check themselves."""

import torch
from torch import Tensor

from nngeo_core.errors import NonFiniteError
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.linear_algebra.norms import euclidean_norm

__all__ = ["add_gram_", "eigh", "mirror_"]

_WIDTH = 512
"""Columns of a block: narrower ones save more multiplications, and make each product less efficient."""


def add_gram_(matrix: Tensor, rows: Tensor, sign: int = 1) -> None:
    """Add sign rows^T rows to the blocks of a matrix (d, d) on and above its diagonal; `mirror_` fills the rest in the end.

    Args:
        matrix: Shape (d, d), changed in place.
        rows: Shape (k, d).
        sign: 1, or -1 to subtract.
    """
    d = len(matrix)
    for start in range(0, d, _WIDTH):
        stop = min(d, start + _WIDTH)
        matrix[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:], alpha=sign)


def mirror_(matrix: Tensor) -> Tensor:
    """Copy what is above the diagonal blocks of `add_gram_` below them, in place; returns the matrix."""
    for start in range(0, len(matrix), _WIDTH):
        stop = start + _WIDTH
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
    return matrix


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of symmetric matrices (..., d, d).

    The symmetric part is decomposed in the matrix's own dtype; where that does not converge, or leaves a residual, in
    float64. Negative eigenvalues within rounding of zero, d eps times the largest, are set to zero.

    Raises:
        NonFiniteError: An entry is NaN or infinite.
    """
    if not all_finite(matrix):
        raise NonFiniteError(f"a matrix of shape {tuple(matrix.shape)} with NaN or infinite entries has no eigenvalues")
    symmetric = (matrix + matrix.mT) / 2
    try:
        values, vectors = torch.linalg.eigh(symmetric)
        accurate = _residual_is_small(symmetric, values, vectors)
    except RuntimeError:  # did not converge
        accurate = False
    if not accurate:
        values, vectors = (part.to(matrix.dtype) for part in torch.linalg.eigh(symmetric.double()))
    cutoff = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * values.abs().amax(-1, keepdim=True)
    return torch.where((values < 0) & (values >= -cutoff), 0, values), vectors


def _residual_is_small(matrix: Tensor, values: Tensor, vectors: Tensor) -> bool:
    """Whether |M U - U diag(w)| is d eps |M| at most."""
    residual = euclidean_norm(matrix @ vectors - vectors * values.unsqueeze(-2), (-2, -1))
    scale = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * euclidean_norm(matrix, (-2, -1))
    return bool((residual <= scale).all())
