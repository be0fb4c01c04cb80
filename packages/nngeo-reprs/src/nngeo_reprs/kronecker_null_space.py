"""Solving with a Kronecker product whose input factor has a large null space, as that of a wide layer on few examples."""

import torch
from torch import Tensor

from nngeo_core.linear_algebra.damping import check_invertible
from nngeo_reprs.kronecker_basis import FactorSpectrum

__all__ = ["null_width", "solve_beside_null_space"]

ROUNDING = 8
"""An eigenvalue up to so many eps times the largest one may count as zero."""


def null_width(spectrum: FactorSpectrum) -> int:
    """How many eigenvalues of A (W wide) are zero up to rounding, the same number in every group; 0 where it is in doubt.

    It is in doubt where other eigenvalues are below W eps times the largest: a small eigenvalue could then be one of those
    that count as zero. Also 0 where at most half of them are zero, so that leaving those out saves no multiplications, and
    where A is diagonal.
    """
    values, width = spectrum.inputs.abs(), spectrum.inputs.shape[-1]
    if spectrum.basis.inputs is None or not values.numel():
        return 0
    unit = torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
    doubtful, zero = ((values <= units * unit).sum(-1) for units in (max(width, ROUNDING), ROUNDING))
    found = int(zero.min())
    first = bool((values[..., :found] <= ROUNDING * unit).all())  # eigenvalues ascend, unless some are negative
    return found if first and 2 * found > width and bool((doubtful == found).all()) else 0


def solve_beside_null_space(spectrum: FactorSpectrum, null: int, matrix: Tensor, regul: float, what: str) -> Tensor:
    """(G (x) A + r I)^-1 V by only those k eigenvectors of A whose eigenvalues are not zero, the columns of U.

    The part of V (..., q, G, W) that is orthogonal to U, V - V U U^T, is divided by r. The projection is subtracted twice: what
    is left along U is then rounding of that part, not of V. 4 k G W + 2 k G^2 multiplications instead of 2 G W^2 + 2 G^2 W.

    Args:
        spectrum: The eigendecompositions of G and A.
        null: How many eigenvalues of A are zero.
        matrix: V.
        regul: r, positive.
        what: Names the block.

    Raises:
        NotPositiveDefiniteError: The damped block is singular to working precision.
    """
    assert spectrum.basis.inputs is not None
    values, vectors = spectrum.inputs[..., null - 1 :].clone(), spectrum.basis.inputs[..., null:]
    values[..., 0] = 0  # one zero stands for all of them
    damped = spectrum.outputs.unsqueeze(-1) * values.unsqueeze(-2) + regul
    check_invertible(damped, regul, what)
    along = matrix @ vectors
    rest = matrix - along @ vectors.mT
    coordinates = spectrum.basis.outputs.mT @ along
    kept = spectrum.basis.outputs @ coordinates.div_(damped[..., 1:])
    kept -= (rest @ vectors).div_(regul)
    return rest.div_(regul).add_(kept @ vectors.mT)
