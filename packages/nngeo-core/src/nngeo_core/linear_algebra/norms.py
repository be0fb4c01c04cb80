"""Norms to all digits: of many numbers, and of those whose squares leave the range of the dtype (float32: 1e-19 to 1e19)."""

import torch
from torch import Tensor

__all__ = ["euclidean_norm"]

_SAFE = 1e-8
"""Above it, the squares that underflow in float32 do not count."""

_PIECE = 512
"""How many squares torch may add one after the other, as it does on a CPU: after 1e8 of them float32 has two digits left."""


def euclidean_norm(tensor: Tensor, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
    """The square root of the sum of squares, over some dimensions or all, of real numbers of any size.

    Args:
        tensor: The numbers, of any shape.
        dim: Which dimensions; None takes all, and an empty tuple none.
        keepdim: Whether they stay, with size one.

    Example:
        >>> euclidean_norm(torch.tensor([3e30, 4e30]))
        tensor(5.0000e+30)
    """
    if dim is None and not keepdim and tensor.is_contiguous():
        tensor = tensor.view(-1)
    dims = tuple(range(tensor.ndim)) if dim is None else (dim,) if isinstance(dim, int) else dim
    if not dims:
        return tensor.abs()
    found = _over(tensor, dims)
    if tensor.numel() and not _is_safe(found):
        largest = tensor.detach().abs().amax(dims, keepdim=True).clamp(min=torch.finfo(tensor.dtype).tiny)
        scaled = _over(tensor / largest, dims) * largest
        found = torch.where(largest.isfinite(), scaled, largest)
    return found if keepdim else found.squeeze(dims)


def _is_safe(found: Tensor) -> bool:
    """Whether no sum of squares has left the range; what is not known, as under vmap, is not safe."""
    try:
        return bool(((found > _SAFE) & found.isfinite()).all())
    except RuntimeError:
        return False


def _over(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The norms over some dimensions, which stay with size one: one after the other, and each in pieces."""
    for dim in dims:
        while (size := tensor.shape[dim]) > _PIECE and not tensor.requires_grad:  # (no second derivative)
            whole = size - size % _PIECE
            pieces = tensor.narrow(dim, 0, whole).unflatten(dim, (-1, _PIECE))
            norms = torch.linalg.vector_norm(pieces, dim=dim + 1 if dim >= 0 else dim)
            rest = torch.linalg.vector_norm(tensor.narrow(dim, whole, size - whole), dim=dim, keepdim=True)
            tensor = torch.cat([norms, rest], dim)
        tensor = torch.linalg.vector_norm(tensor, dim=dim, keepdim=True)
    return tensor
