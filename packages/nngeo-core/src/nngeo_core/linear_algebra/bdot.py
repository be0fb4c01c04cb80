"""Batched dot product."""

from torch import Tensor

from nngeo_core.errors import ShapeError

__all__ = ["bdot"]


def bdot(A: Tensor, B: Tensor) -> Tensor:
    """Dot products of the rows of two matrices: out[i] = sum_k A[i, k] B[i, k].

    Args:
        A: Shape (n, k).
        B: Shape (n, k).

    Returns:
        Shape (n,).

    Raises:
        ShapeError: The shapes differ or are not two-dimensional.

    Example:
        >>> import torch
        >>> bdot(torch.ones(2, 3), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
        tensor([ 6., 15.])
    """
    if A.ndim != 2 or A.shape != B.shape:
        raise ShapeError(f"bdot takes two tensors of one shape (n, k), got {tuple(A.shape)} and {tuple(B.shape)}")
    return (A * B).sum(1)
