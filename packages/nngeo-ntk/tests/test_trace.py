"""FMatTrace: the contract."""

import torch
from torch import Tensor

from nngeo_core.testing import FMatContract
from nngeo_ntk import FMatTrace


class TestFMatTrace(FMatContract):
    representation = FMatTrace

    def kept(self, kernel: Tensor) -> Tensor:
        """The average over outputs."""
        return torch.einsum("cncm->nm", kernel)[None, :, None] / len(kernel)
