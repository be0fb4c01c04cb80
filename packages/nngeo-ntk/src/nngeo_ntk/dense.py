"""FMatDense: all entries of a kernel."""

import torch
from torch import Tensor

from nngeo_ntk.stored import StoredKernel

__all__ = ["FMatDense"]


class FMatDense(StoredKernel):
    """All entries K[c, n, k, m] = J[c, n] . J[k, m], cross-output ones included. Exact; memory (c n)^2, `solve` (c n)^3 once.

    `data` is a tensor (c, n, c, n), or (c, n1, c, n2) of a cross kernel. Read as a matrix, and so in its products with an
    `FVector` and its eigenvectors, it is row-major: all examples of output 0 come first. (Jacot, Gabriel & Hongler 2018.)

    Example:
        >>> from nngeo_core import FVector
        >>> K = FMatDense(data=torch.tensor([[4.0, 2.0], [2.0, 2.0]]).view(1, 2, 1, 2))
        >>> K.solve(FVector(torch.tensor([[6.0, 4.0]])), regul=0).vector_repr
        tensor([[1., 1.]])
    """

    name = "dense"
    pairing = "all"
    _form = "(c, n, c, m)"

    def _fits(self, shape: torch.Size) -> bool:
        return len(shape) == 4 and shape[0] == shape[2]

    def size(self) -> tuple[int, int, int, int]:
        """(c, n, c, n), or (c, n1, c, n2) of a cross kernel."""
        c, n, k, m = self.data.shape
        return c, n, k, m

    def _blocks(self) -> Tensor:
        c, n, k, m = self.data.shape
        return self.data.reshape(1, c * n, k * m)

    def _with_blocks(self, blocks: Tensor) -> "FMatDense":
        return self._with_data(blocks.reshape(self.data.shape))

    def get_dense_tensor(self) -> Tensor:
        """The stored tensor itself."""
        return self.data
