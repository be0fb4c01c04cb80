"""Full precision: matrix algebra whatever the caller's autocast says."""

from contextlib import AbstractContextManager

import torch

__all__ = ["full_precision"]


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """A context in which products are computed in the dtype of their operands, also under the caller's autocast.

    Example:
        >>> x = torch.ones(2, 2)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(x.device):
        ...     (x @ x).dtype
        torch.float32
    """
    context: AbstractContextManager[None] = torch.autocast(device.type, enabled=False)
    return context
