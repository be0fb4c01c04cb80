"""KernelSpectrum: eigenvalues and eigenvectors of a kernel in function space."""

from dataclasses import dataclass

from torch import Tensor

from nngeo_core.vectors.fvector import FVector

__all__ = ["KernelSpectrum"]


@dataclass(frozen=True, eq=False)
class KernelSpectrum:
    """K = sum_k w_k u_k u_k^T for orthonormal u_k in function space, or its part over the largest eigenvalues.

    Args:
        values: Eigenvalues w, shape (k,), ascending.
        vectors: The eigenvectors u, shape (k, c, n).
        residuals: |K u_k - w_k u_k| where an iteration found them, shape (k,); else None.

    Example:
        >>> import torch
        >>> found = KernelSpectrum(torch.tensor([1.0, 3.0]), torch.eye(2).view(2, 1, 2))
        >>> found.vector(-1).vector_repr
        tensor([[0., 1.]])
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor | None = None

    def vector(self, place: int) -> FVector:
        """The eigenvector of one eigenvalue; -1 for the largest."""
        return FVector(self.vectors[place])

    def leading(self, k: int | None) -> "KernelSpectrum":
        """The part over the k largest eigenvalues, all of them for None."""
        if k is None:
            return self
        first = len(self.values) - k
        return KernelSpectrum(self.values[first:], self.vectors[first:])

    def apply(self, weights: Tensor, u: Tensor) -> Tensor:
        """sum_k weights_k u_k (u_k . u) for u of shape (c, n)."""
        rows = self.vectors.flatten(1)
        return ((rows @ u.flatten()) * weights @ rows).view_as(u)
