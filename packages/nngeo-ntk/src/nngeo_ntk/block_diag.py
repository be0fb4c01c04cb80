"""FMatBlockDiag: the kernel of each output alone."""

import torch
from torch import Tensor

from nngeo_ntk.stored import StoredKernel

__all__ = ["FMatBlockDiag"]


class FMatBlockDiag(StoredKernel):
    """One kernel for each output, K[c, n, c, m]; entries between different outputs are zero. Memory c n^2, `solve` c n^3 once.

    Exact within outputs; in the limit of infinite width the rest vanishes and all blocks are equal. `data` is a tensor
    (c, n, n), or (c, n1, n2) of a cross kernel.

    Example:
        >>> K = FMatBlockDiag(data=torch.tensor([[[2.0]], [[3.0]]]))
        >>> K.get_dense_tensor().view(2, 2)
        tensor([[2., 0.],
                [0., 3.]])
    """

    name = "blockdiag"
    pairing = "equal"
    _form = "(c, n, m)"

    def _fits(self, shape: torch.Size) -> bool:
        return len(shape) == 3

    def size(self) -> tuple[int, int, int, int]:
        """(c, n, c, n), or (c, n1, c, n2) of a cross kernel, whatever the size in memory."""
        c, n, m = self.data.shape
        return c, n, c, m

    def _blocks(self) -> Tensor:
        return self.data

    def _with_blocks(self, blocks: Tensor) -> "FMatBlockDiag":
        return self._with_data(blocks)

    def get_dense_tensor(self) -> Tensor:
        """All entries, shape (c, n, c, n), or (c, n1, c, n2) of a cross kernel."""
        return torch.diag_embed(self.data.movedim(0, -1), dim1=0, dim2=2)
