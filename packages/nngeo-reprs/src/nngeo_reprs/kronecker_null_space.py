"""Solving with a Kronecker product whose input factor has a large null space, as that of a wide layer on few examples."""

from torch import Tensor

from nngeo_core.linear_algebra.damping import check_invertible
from nngeo_reprs.kronecker_basis import FactorSpectrum

__all__ = ["null_width", "solve_beside_null_space"]


def null_width(spectrum: FactorSpectrum) -> int:
    """How many eigenvalues of A (W wide) are zero, in every group.

    0 where at most half of them are, so that leaving those out saves no multiplications, where A is diagonal, and where it
    has negative ones, which come before.
    """
    values, width = spectrum.inputs, spectrum.inputs.shape[-1]
    if spectrum.basis.inputs is None or not values.numel():
        return 0
    found = int((values == 0).sum(-1).min())
    first = bool((values[..., :found] == 0).all())
    return found if first and 2 * found > width else 0


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
    # of the zeros, one stands for all
    values, vectors = spectrum.inputs[..., null - 1 :], spectrum.basis.inputs[..., null:]
    damped = spectrum.outputs.unsqueeze(-1) * values.unsqueeze(-2) + regul
    check_invertible(damped, regul, what)
    along = matrix @ vectors
    rest = matrix - along @ vectors.mT
    coordinates = spectrum.basis.outputs.mT @ along
    kept = spectrum.basis.outputs @ coordinates.div_(damped[..., 1:])
    kept -= (rest @ vectors).div_(regul)
    return rest.div_(regul).add_(kept @ vectors.mT)
