"""The eigenvalues of a kernel in one number."""

import torch
from torch import Tensor

from nngeo_core.matrices.fmat import FMat

__all__ = ["effective_rank", "participation_ratio"]


def effective_rank(kernel: FMat) -> Tensor:
    """exp of the entropy of the eigenvalues divided by their sum (Roy & Vetterli 2007): 1 to c n, 0-dimensional.

    Eigenvalues that are negative by rounding count as zero; a kernel that vanishes has rank 0.

    Example:
        >>> from nngeo_ntk import FMatTrace
        >>> effective_rank(FMatTrace(data=torch.eye(3)))
        tensor(3.)
    """
    values = kernel.eigendecomposition().values.clamp(min=0)
    total = values.sum()
    shares = values / torch.where(total > 0, total, 1)
    return torch.where(total > 0, torch.special.entr(shares).sum().exp(), 0)


def participation_ratio(kernel: FMat) -> Tensor:
    """(sum w)^2 / sum w^2, from trace and norm alone: a rank that follows the largest eigenvalues, 0-dimensional.

    Example:
        >>> from nngeo_ntk import FMatTrace
        >>> participation_ratio(FMatTrace(data=torch.eye(3)))
        tensor(3.0000)
    """
    norm = kernel.norm()
    return torch.where(norm > 0, (kernel.trace() / torch.where(norm > 0, norm, 1)).square(), 0)
