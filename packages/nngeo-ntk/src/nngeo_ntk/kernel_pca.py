"""Principal components of the tangent features."""

import torch
from torch import Tensor

from nngeo_core.matrices.fmat import FMat
from nngeo_ntk.over_outputs import check_cross

__all__ = ["KernelPCA"]


class KernelPCA:
    """The leading principal components of centred tangent features (Schoelkopf, Smola & Mueller 1998).

    Args:
        kernel: K(X, X).
        k: How many components.

    Attributes:
        values: Variances times n: the k largest eigenvalues of the centred kernel, descending.
        projections: The examples in the basis of components, shape (k, c, n): sqrt(w_k) u_k. Signs are arbitrary.

    Raises:
        ValueError: k is not between 1 and c n.

    Example:
        >>> from nngeo_ntk import FMatTrace
        >>> KernelPCA(FMatTrace(data=torch.diag(torch.tensor([2.0, 2.0]))), 1).projections.abs().round()
        tensor([[[1., 1.]]])
    """

    def __init__(self, kernel: FMat, k: int = 2) -> None:
        self.kernel = kernel
        found = kernel.centered().eigendecomposition(k)
        self.values = found.values.flip(0).clamp(min=0)
        self._vectors = found.vectors.flip(0)
        self.projections = self._vectors * self.values.sqrt().view(-1, 1, 1)

    def project(self, cross: FMat) -> Tensor:
        """Other examples in the same basis, shape (k, c, n1); zero along components without variance.

        Args:
            cross: K(X1, X), of the representation of the kernel.

        Raises:
            ShapeError: Its columns are not the examples of the kernel.
            TypeError: Its entries are of other outputs than the kernel's.
        """
        check_cross(self.kernel, cross)
        entries = cross.get_dense_tensor()  # (c, n1, c, n)
        rows = entries - self.kernel.get_dense_tensor().mean(1, keepdim=True)
        centered = rows - rows.mean(3, keepdim=True)
        scores = torch.einsum("cnkm,pkm->pcn", centered, self._vectors)
        positive = (self.values > 0).view(-1, 1, 1)
        return torch.where(positive, scores / torch.where(positive, self.values.sqrt().view(-1, 1, 1), 1), 0)
