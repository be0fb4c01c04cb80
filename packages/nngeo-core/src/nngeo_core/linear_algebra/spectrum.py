"""Functions of eigenvalues with a cut-off: what is within rounding of zero counts as zero."""

import torch
from torch import Tensor

from nngeo_core.errors import NotPositiveDefiniteError

__all__ = ["cutoff", "reciprocals", "roots"]


def roots(eigenvalues: Tensor, size: int, what: str) -> Tensor:
    """Square roots of the eigenvalues of positive semidefinite matrices; zero up to d eps times the largest.

    Args:
        eigenvalues: Those of one matrix along the last axis, shape (..., k).
        size: The d of the cut-off.
        what: Names the matrix.

    Raises:
        NotPositiveDefiniteError: One is negative beyond the cut-off.
    """
    zero = cutoff(eigenvalues, size)
    if (eigenvalues < -zero).any():
        smallest = eigenvalues.min()
        raise NotPositiveDefiniteError(
            f"{what} has the negative eigenvalue {float(smallest):.1e} and no real square root; add c I with "
            f"c >= {-float(smallest):.0e} first"
        )
    return torch.where(eigenvalues > zero, eigenvalues, 0).sqrt()


def reciprocals(eigenvalues: Tensor, size: int) -> Tensor:
    """1 / w, and zero where |w| is at most d eps times the largest.

    Args:
        eigenvalues: Those of one matrix along the last axis, shape (..., k).
        size: The d of the cut-off.
    """
    kept = eigenvalues.abs() > cutoff(eigenvalues, size)
    return torch.where(kept, 1 / torch.where(kept, eigenvalues, 1), 0)


def cutoff(eigenvalues: Tensor, size: int) -> Tensor:
    """d eps times the largest absolute value along the last axis, which stays with size one.

    Args:
        eigenvalues: Those of one matrix along the last axis, shape (..., k).
        size: d.
    """
    if not eigenvalues.numel():  # of a layer without parameters
        return eigenvalues.new_zeros(())
    return size * torch.finfo(eigenvalues.dtype).eps * eigenvalues.abs().amax(-1, keepdim=True)
