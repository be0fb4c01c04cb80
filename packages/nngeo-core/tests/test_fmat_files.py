"""Kernels in files: through the same functions as matrices in parameter space."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nngeo_core import FMat, PMat, StorageError, UnsupportedOperationError


class Kernel(FMat):
    """All entries of a kernel."""

    name = "files-kernel"

    def __init__(self, data: Tensor, symmetric: bool = True) -> None:
        self.data = data
        self._symmetric = symmetric

    @property
    def symmetric(self) -> bool:
        return self._symmetric

    def _none(self) -> None:
        raise AssertionError("not needed here")

    size = dtype = device = _mv = _trace = _norm = _solve = _add = _scaled = _centered = _eigendecomposition = _none  # type: ignore[assignment]
    trace = get_dense_tensor = _none  # type: ignore[assignment]


class Products(Kernel):
    """Products alone."""

    name = "files-products"

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_kernel_comes_back_bit_for_bit(tmp_path: Path, symmetric: bool) -> None:
    kernel = Kernel(torch.randn(2, 3, 2, 4, dtype=torch.float64), symmetric)
    kernel.save(tmp_path / "kernel")
    for found in (FMat.load(tmp_path / "kernel"), Kernel.load(tmp_path / "kernel"), copy.deepcopy(kernel)):
        assert type(found) is Kernel and found.symmetric is symmetric
        assert torch.equal(found.data, kernel.data) and found.data is not kernel.data
    assert torch.equal(pickle.loads(pickle.dumps(kernel)).data, kernel.data)
    assert FMat.load(tmp_path / "kernel", dtype=torch.float32).data.dtype == torch.float32


def test_kernels_and_matrices_are_told_apart(tmp_path: Path) -> None:
    Kernel(torch.ones(1, 1, 1, 1)).save(tmp_path / "kernel")
    with pytest.raises(
        StorageError, match=r"holds a fmat 'files-kernel', expected a pmat; FMat\.load\(path\) reads it"
    ):
        PMat.load(tmp_path / "kernel")


def test_a_kernel_of_products_alone_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperationError, match="a Products stores no numbers that could be written to a file"):
        Products().save(tmp_path / "kernel")
