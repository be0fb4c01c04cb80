"""FMatBlockDiag: the contract."""

import torch
from torch import Tensor

from nngeo_core.testing import FMatContract
from nngeo_ntk import FMatBlockDiag


class TestFMatBlockDiag(FMatContract):
    representation = FMatBlockDiag

    def kept(self, kernel: Tensor) -> Tensor:
        """Zero between different outputs."""
        return kernel * torch.eye(len(kernel)).to(kernel)[:, None, :, None]
