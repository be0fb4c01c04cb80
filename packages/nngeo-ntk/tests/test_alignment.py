"""Alignment between kernels and with targets, against the definition."""

import pytest
import torch
from torch import Tensor

from nngeo_core import FVector, GramMatrix, ShapeError
from nngeo_core.testing import relative_error
from nngeo_ntk import FMatTrace, kernel_alignment, participation_ratio, target_alignment

from .helpers import problem


def cosine(first: Tensor, second: Tensor, centered: bool, outputs: int) -> Tensor:
    n = len(first) // outputs
    center = torch.eye(n, dtype=first.dtype) - centered / n
    whole = torch.block_diag(*[center] * outputs)
    one, other = whole @ first @ whole, whole @ second @ whole
    return (one * other).sum() / (one.norm() * other.norm())


@pytest.mark.parametrize("centered", [True, False])
def test_of_kernels(centered: bool) -> None:
    p = problem()
    entries = {kind: GramMatrix(p.case.model, p.train, kind) for kind in ("dense", "blockdiag")}
    flat = [kernel.get_dense_tensor().reshape(21, 21) for kernel in entries.values()]
    found = kernel_alignment(*entries.values(), centered=centered)
    assert relative_error(found, cosine(*flat, centered, 3)) <= 1e-12
    assert relative_error(kernel_alignment(entries["dense"], entries["dense"] * 3), torch.tensor(1.0)) <= 1e-12


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("kind", ["dense", "trace"])
def test_with_targets(centered: bool, kind: str) -> None:
    p = problem()
    kernel = GramMatrix(p.case.model, p.train, kind)
    c = kernel.size()[0]
    flat, y = kernel.get_dense_tensor().reshape(7 * c, 7 * c), p.targets.vector_repr
    wanted = y.T @ y if c == 1 else torch.outer(y.flatten(), y.flatten())
    found = target_alignment(kernel, p.targets, centered)
    assert relative_error(found, cosine(flat, wanted, centered, c)) <= 1e-12


def test_a_kernel_that_vanishes_is_aligned_with_nothing() -> None:
    zero = FMatTrace(data=torch.zeros(2, 2))
    assert kernel_alignment(zero, FMatTrace(data=torch.eye(2))).item() == 0
    assert target_alignment(FMatTrace(data=torch.eye(2)), FVector(torch.ones(1, 2))).item() == 0


def test_kernels_of_other_examples_are_refused() -> None:
    with pytest.raises(ShapeError, match="same examples have one size"):
        kernel_alignment(FMatTrace(data=torch.eye(2)), FMatTrace(data=torch.eye(3)))
    with pytest.raises(ShapeError, match="targets have shape"):
        target_alignment(FMatTrace(data=torch.eye(2)), FVector(torch.ones(1, 3)))


@pytest.mark.parametrize("scale", [1e-26, 1e26])
def test_kernels_of_any_scale_in_float32(scale: float) -> None:
    """Squares of their entries leave the range of float32: norm, alignments and ratio do not."""
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    K, scaled = FMatTrace(data=rows @ rows.T), FMatTrace(data=rows @ rows.T * scale)
    y = FVector(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    assert torch.isclose(scaled.norm() / scale, K.norm(), rtol=1e-5)
    assert torch.isclose(kernel_alignment(scaled, K), torch.tensor(1.0))
    assert torch.isclose(target_alignment(scaled, y), target_alignment(K, y), rtol=1e-5)
    assert torch.isclose(participation_ratio(scaled), participation_ratio(K), rtol=1e-5)


def test_a_sum_with_a_cross_kernel_is_not_symmetric() -> None:
    square = torch.arange(9.0).view(3, 3)
    K, cross = FMatTrace(data=torch.eye(3)), FMatTrace(data=square, symmetric=False)
    assert not (K + cross).symmetric and not (cross + K).symmetric and (K + K).symmetric
