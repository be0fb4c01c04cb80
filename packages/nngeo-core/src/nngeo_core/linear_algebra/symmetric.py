"""Symmetric matrices: Gram sums at half the multiplications, eigendecompositions that check themselves."""

from functools import lru_cache

import torch
from torch import Tensor

from nngeo_core.errors import NonFiniteError

__all__ = ["add_gram_", "eigh", "mirror_"]

_WIDTH = 512
"""Columns of a block: narrower ones save more multiplications, and make each product less efficient."""
_PROBES = 8
"""How many random vectors a residual is multiplied with: that eight show less than a tenth of it, chance is one to 10^7."""


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

    One triangle is decomposed in the matrix's own dtype. Where that does not converge, or leaves a residual, the symmetric
    part is decomposed in float64; the residual is that of the whole matrix, by products with a few random vectors (Freivalds
    1977). Negative eigenvalues within rounding of zero, d eps times the largest (8 eps at least), are set to zero.

    Raises:
        NonFiniteError: An entry is NaN or infinite.
    """
    probes = _probes(matrix.shape[-1], matrix.dtype, matrix.device)
    rounding = max(matrix.shape[-1], 8) * torch.finfo(matrix.dtype).eps
    image = probes @ matrix
    size = _largest(image)
    if not size.isfinite().all():
        raise NonFiniteError(f"a matrix of shape {tuple(matrix.shape)} with NaN or infinite entries has no eigenvalues")
    try:
        values, vectors = torch.linalg.eigh(matrix.mT)  # by columns, as LAPACK reads it
        rotated = torch.cat((image, probes.expand_as(image)), -2) @ vectors  # which are read once
        residual = rotated[..., :_PROBES, :] - rotated[..., _PROBES:, :] * values.unsqueeze(-2)
        accurate = bool((_largest(residual) <= rounding * size).all())
    except RuntimeError:  # did not converge
        accurate = False
    if not accurate:
        exact = matrix.double()
        values, vectors = (part.to(matrix.dtype) for part in torch.linalg.eigh((exact + exact.mT) / 2))
    if (values[..., :1] < 0).any():
        cutoff = rounding * values.abs().amax(-1, keepdim=True)
        values = torch.where((values < 0) & (values >= -cutoff), 0, values)
    return values, vectors


@lru_cache(maxsize=16)
def _probes(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The random vectors, the same each time, as rows."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):
        return torch.randn(_PROBES, width, generator=generator, dtype=dtype, device="cpu").to(device)


def _largest(rows: Tensor) -> Tensor:
    """The largest absolute value of each matrix, shape (...): unlike a sum of squares it leaves no dtype's range."""
    if not rows.numel():  # of a layer without parameters
        return rows.new_zeros(rows.shape[:-2])
    found: Tensor = torch.linalg.vector_norm(rows, torch.inf, dim=(-2, -1))
    return found
