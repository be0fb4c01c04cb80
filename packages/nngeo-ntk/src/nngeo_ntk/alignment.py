"""How much kernels resemble one another, and the targets."""

import torch
from torch import Tensor

from nngeo_core.errors import ShapeError
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.matrices.fmat import FMat
from nngeo_core.vectors.fvector import FVector
from nngeo_ntk.over_outputs import check_outputs

__all__ = ["kernel_alignment", "target_alignment"]


def kernel_alignment(first: FMat, second: FMat, centered: bool = True) -> Tensor:
    """The cosine <K, K'> / (|K| |K'|) between two kernels of the same examples, 0-dimensional.

    Args:
        first: K.
        second: K', of the same size and any representation.
        centered: Whether features are centred first (Cortes, Mohri & Rostamizadeh 2012), without which a constant dominates.

    Raises:
        ShapeError: The sizes differ.

    Example:
        >>> from nngeo_ntk import FMatTrace
        >>> K = FMatTrace(data=torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
        >>> kernel_alignment(K, 3 * K)
        tensor(1.)
    """
    if first.size() != second.size():
        raise ShapeError(f"two kernels of the same examples have one size, got {first.size()} and {second.size()}")
    one, other = (kernel.centered() if centered else kernel for kernel in (first, second))
    return _cosine(one.get_dense_tensor(), other.get_dense_tensor())


def target_alignment(kernel: FMat, targets: FVector, centered: bool = True) -> Tensor:
    """The cosine between a kernel and that of the targets, <K, y y^T> / (|K| |y y^T|), 0-dimensional.

    Args:
        kernel: K. Where it is one of examples alone, y y^T sums over the outputs of the targets, such as one-hot classes.
        targets: y, shape (c, n).
        centered: Whether both are centred first.

    Raises:
        ShapeError: The targets do not fit the kernel.

    Example:
        >>> from nngeo_ntk import FMatTrace
        >>> y = torch.tensor([[1.0, -1.0]])
        >>> target_alignment(FMatTrace(data=y.T @ y), FVector(y))
        tensor(1.)
    """
    check_outputs(kernel, targets, "targets")
    y = targets.vector_repr.to(kernel.dtype)
    y = y - y.mean(1, keepdim=True) if centered else y
    alone = kernel.size()[0] == 1
    wanted = (y.T @ y)[None, :, None] if alone else torch.einsum("cn,km->cnkm", y, y)
    return _cosine((kernel.centered() if centered else kernel).get_dense_tensor(), wanted)


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """The cosine; zero if one of them vanishes."""
    norms = [euclidean_norm(part) for part in (first, second)]
    if not all(norm > 0 for norm in norms):
        return first.new_zeros(())
    return (first / norms[0] * (second / norms[1])).sum()
