"""A quick look for NaN and infinity."""

from torch import Tensor

__all__ = ["all_finite"]


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite: one sum decides unless it overflows.

    Example:
        >>> import torch
        >>> all_finite(torch.tensor([1.0, float("nan")]))
        False
    """
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
