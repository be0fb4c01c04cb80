"""ClassifLogits: the Fisher information of a softmax, also where it is very sure."""

import pytest
import torch
from torch import Tensor

from nngeo_core import ClassifLogits, ShapeError
from nngeo_core.testing import fisher_metric, relative_error

N, CLASSES = 5, 4


def _logits(scale: float = 1.0, n: int = N, classes: int = CLASSES) -> Tensor:
    return scale * torch.randn(n, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _directions(outputs: Tensor) -> Tensor:
    return ClassifLogits().directions(outputs, None, slice(0, ClassifLogits().n_directions(outputs)))


def _expected_metric(outputs: Tensor) -> Tensor:
    """E_y[grad log p(y) grad log p(y)^T] over all targets y, by autograd."""
    total = torch.zeros(len(outputs), outputs.shape[1], outputs.shape[1], dtype=outputs.dtype)
    for y in range(outputs.shape[1]):
        leaf = outputs.clone().requires_grad_()
        log_p = leaf.log_softmax(1)[:, y]
        (gradient,) = torch.autograd.grad(log_p.sum(), leaf)
        total += log_p.detach().exp()[:, None, None] * gradient[:, :, None] * gradient[:, None, :]
    return total


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_directions_and_metric_are_the_expectation_over_targets(scale: float) -> None:
    outputs = _logits(scale)
    expected = _expected_metric(outputs)
    v = _directions(outputs)
    assert v.shape == (CLASSES - 1, N, CLASSES)
    assert relative_error(torch.einsum("kna,knb->nab", v, v), expected) <= 1e-13
    u = torch.randn(N, CLASSES, dtype=torch.float64)
    assert relative_error(ClassifLogits().metric(outputs, u), torch.einsum("nab,nb->na", expected, u)) <= 1e-13
    assert relative_error(fisher_metric(outputs, "classif_logits"), expected) <= 1e-13


@pytest.mark.parametrize("width", [1, 2, CLASSES - 1])
def test_directions_come_in_chunks(width: int) -> None:
    outputs = _logits()
    slices = [slice(k, min(CLASSES - 1, k + width)) for k in range(0, CLASSES - 1, width)]
    chunks = [ClassifLogits().directions(outputs, None, chosen) for chosen in slices]
    assert torch.equal(torch.cat(chunks), _directions(outputs))


def _exact_diagonal(outputs: Tensor) -> Tensor:
    """p_k (1 - p_k) with 1 - p_k summed from the other classes, in float64."""
    p = outputs.double().softmax(1)
    others = torch.stack([torch.cat([p[:, :k], p[:, k + 1 :]], 1).sum(1) for k in range(p.shape[1])], 1)
    return p * others


@pytest.mark.parametrize("scale", [5.0, 30.0, 100.0])
def test_confident_logits_in_float32(scale: float) -> None:
    outputs = _logits(scale, n=200, classes=10).float()
    v = _directions(outputs)
    assert v.isfinite().all()
    expected = _exact_diagonal(outputs)
    diagonal = v.square().sum(0)
    assert relative_error(diagonal, expected) <= 1e-5
    for found, exact in zip(
        diagonal, expected, strict=True
    ):  # each example on its own scale, as long as float32 holds it
        if exact.max() > 1e-30:
            assert relative_error(found, exact) <= 1e-4


@pytest.mark.parametrize("top", [0, 4, 9], ids=["first", "middle", "last"])
def test_each_entry_of_the_metric_has_its_own_scale_in_float32(top: int) -> None:
    """However sure the model is, and whichever class is the likeliest: entries down to 1e-14, each relative to its diagonal."""
    outputs = -torch.linspace(0, 15, 10).repeat(50, 1) - _logits(1.0, 50, 10).float().abs()
    outputs[:, top] = torch.linspace(0, 30, 50)
    log_p = outputs.double().log_softmax(1)
    exact = -log_p.exp()[:, :, None] * log_p.exp()[:, None, :]
    exact.diagonal(dim1=1, dim2=2).copy_(_exact_diagonal(outputs))
    v = _directions(outputs).double()
    scale = exact.diagonal(dim1=1, dim2=2).sqrt()
    error = (torch.einsum("kna,knb->nab", v, v) - exact) / (scale[:, :, None] * scale[:, None, :])
    assert error.abs().max() <= 1e-5


@pytest.mark.parametrize("scale", [5.0, 30.0, 100.0])
def test_products_with_confident_logits_in_float32(scale: float) -> None:
    outputs = _logits(scale, n=200, classes=10).float()
    u = torch.randn(200, 10, generator=torch.Generator().manual_seed(2))
    found = ClassifLogits().metric(outputs, u)
    wide = _directions(outputs.double())
    expected = torch.einsum("kna,knb,nb->na", wide, wide, u.double())
    assert found.isfinite().all()
    for row, exact in zip(found, expected, strict=True):
        if exact.abs().max() > 1e-30:
            assert relative_error(row, exact) <= 1e-4


def test_a_shift_of_all_logits_changes_nothing() -> None:
    outputs = _logits()
    assert relative_error(_directions(outputs + 100), _directions(outputs)) <= 1e-12
    assert ClassifLogits().metric(outputs, torch.ones(N, CLASSES, dtype=torch.float64)).norm() <= 1e-15


def test_extreme_logits_have_no_nan() -> None:
    outputs = torch.tensor([[1e4, -1e4, 0.0]])
    assert _directions(outputs).count_nonzero() == 0
    assert ClassifLogits().metric(outputs, torch.ones(1, 3)).count_nonzero() == 0


@pytest.mark.parametrize("ruled_out", [0, 2], ids=["first", "last"])
def test_a_class_that_is_ruled_out_leaves_the_others(ruled_out: int) -> None:
    outputs = _logits(classes=3)
    outputs[:, ruled_out] = -torch.inf
    v, kept = _directions(outputs), [k for k in range(3) if k != ruled_out]
    expected = torch.zeros(N, 3, 3, dtype=torch.float64)
    expected[:, [[kept[0]], [kept[1]]], kept] = _expected_metric(outputs[:, kept])
    assert relative_error(torch.einsum("kna,knb->nab", v, v), expected) <= 1e-13


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ShapeError, match=r"'classif_logits' expects outputs of shape \(n, classes\).*, got \(3.*`function`"
    ):
        ClassifLogits().check(torch.ones(shape))


def test_counts() -> None:
    likelihood, outputs = ClassifLogits(), _logits()
    likelihood.check(outputs)
    assert (likelihood.n_output(outputs), likelihood.n_directions(outputs)) == (CLASSES, CLASSES - 1)
    assert likelihood.targets((outputs, outputs)) is None
