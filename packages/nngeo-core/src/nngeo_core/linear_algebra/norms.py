"""Norms whose squares may leave the range of the dtype: in float32, those of numbers beyond 1e19 or below 1e-19."""

import torch
from torch import Tensor

__all__ = ["euclidean_norm"]

_SAFE = 1e-8
"""Above it, the squares that underflow in float32 do not count."""


def euclidean_norm(tensor: Tensor, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
    """The square root of the sum of squares, over some dimensions or all, of real numbers of any size.

    Args:
        tensor: The numbers, of any shape.
        dim: Which dimensions; None takes all.
        keepdim: Whether they stay, with size one.

    Example:
        >>> euclidean_norm(torch.tensor([3e30, 4e30]))
        tensor(5.0000e+30)
    """
    found: Tensor = torch.linalg.vector_norm(tensor, dim=dim, keepdim=keepdim)
    if tensor.numel() == 0 or bool(((found > _SAFE) & found.isfinite()).all()):
        return found
    dims = tuple(range(tensor.ndim)) if dim is None else dim
    largest = tensor.abs().amax(dims, keepdim=True).clamp(min=torch.finfo(tensor.dtype).tiny)
    scaled: Tensor = torch.linalg.vector_norm(tensor / largest, dim=dims, keepdim=True) * largest
    return torch.where(largest.isfinite(), scaled, largest).reshape(found.shape)
