"""Hutchinson's estimates: within their standard errors, which shrink."""

import pytest
import torch
from torch import Tensor

from nngeo_core.linear_algebra.stochastic import Estimate, estimate_diagonal, estimate_trace

CPU = torch.device("cpu")
D = 12


def _matrix() -> Tensor:
    rows = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return rows.T @ rows


def _trace(samples: int, seed: int = 1) -> Estimate:
    matrix, generator = _matrix(), torch.Generator().manual_seed(seed)
    return estimate_trace(lambda rows: rows @ matrix, D, samples, torch.float64, CPU, generator)


def test_the_trace_is_within_its_standard_error_which_shrinks() -> None:
    few, many = _trace(50), _trace(5000)
    for found in (few, many):
        assert found.value.ndim == 0
        assert abs(found.value - _matrix().trace()) <= 4 * found.standard_error
    assert many.standard_error / few.standard_error == pytest.approx(0.1, rel=0.3)


def test_the_standard_error_is_that_of_random_signs() -> None:
    matrix = _matrix()
    off = matrix - matrix.diagonal().diag()
    expected = (2 * off.square().sum() / 5000).sqrt()
    assert _trace(5000).standard_error == pytest.approx(expected.item(), rel=0.1)


def test_the_diagonal_is_within_its_standard_errors() -> None:
    matrix = _matrix()
    found = estimate_diagonal(lambda rows: rows @ matrix, D, 2000, torch.float64, CPU, torch.Generator().manual_seed(3))
    assert found.value.shape == found.standard_error.shape == (D,)
    assert ((found.value - matrix.diagonal()).abs() <= 4.5 * found.standard_error).all()
    off = matrix - matrix.diagonal().diag()
    assert torch.allclose(found.standard_error, (off.square().sum(1) / 2000).sqrt(), rtol=0.1)


def test_a_diagonal_matrix_has_no_error_and_a_seed_repeats() -> None:
    exact = torch.arange(1.0, 4.0)
    found = estimate_diagonal(lambda rows: rows * exact, 3, 2, torch.float32, CPU, torch.Generator())
    assert (found.value.tolist(), found.standard_error.tolist()) == ([1, 2, 3], [0, 0, 0])
    assert torch.equal(_trace(3).value, _trace(3).value)
    assert not torch.equal(_trace(3).value, _trace(3, seed=2).value)


@pytest.mark.parametrize("samples", [1, 2.0, True])
def test_two_samples_at_least(samples: int) -> None:
    with pytest.raises(ValueError, match="2 at least for a standard error"):
        _trace(samples)
