"""FMatTrace: the kernel averaged over outputs."""

import torch
from torch import Tensor

from nngeo_ntk.stored import StoredKernel

__all__ = ["FMatTrace"]


class FMatTrace(StoredKernel):
    """The kernel of examples alone, (1/c) sum_c K[c, n, c, m]. Memory n^2, whatever the number of outputs.

    Exact as that average; it stands for the whole kernel where outputs are alike, as in the limit of infinite width. It acts
    on one coordinate for each example: FVectors of shape (1, n). `data` is a tensor (n, n), or (n1, n2) of a cross kernel.

    Example:
        >>> FMatTrace(data=torch.tensor([[2.0, 1.0], [1.0, 3.0]])).trace()
        tensor(5.)
    """

    name = "trace"
    pairing = "summed"
    _form = "(n, m)"

    def _fits(self, shape: torch.Size) -> bool:
        return len(shape) == 2

    def size(self) -> tuple[int, int, int, int]:
        """(1, n, 1, n), or (1, n1, 1, n2) of a cross kernel."""
        n, m = self.data.shape
        return 1, n, 1, m

    def _blocks(self) -> Tensor:
        return self.data.unsqueeze(0)

    def _with_blocks(self, blocks: Tensor) -> "FMatTrace":
        return self._with_data(blocks[0])

    def get_dense_tensor(self) -> Tensor:
        """The stored numbers, shape (1, n, 1, n), or (1, n1, 1, n2) of a cross kernel."""
        return self.data[None, :, None]
