"""KernelSpectrum: its leading part, and functions of the kernel."""

import torch

from nngeo_core import KernelSpectrum


def test_leading_part_and_functions() -> None:
    whole = KernelSpectrum(torch.tensor([1.0, 2.0, 4.0]), torch.eye(3).view(3, 1, 3))
    part = whole.leading(2)
    assert part.values.tolist() == [2.0, 4.0]
    assert whole.leading(None) is whole
    u = torch.tensor([[1.0, 1.0, 1.0]])
    assert whole.apply(1 / whole.values, u).tolist() == [[1.0, 0.5, 0.25]]
    assert part.apply(part.values, u).tolist() == [[0.0, 2.0, 4.0]]
