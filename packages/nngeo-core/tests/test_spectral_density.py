"""Stochastic Lanczos quadrature: exact moments of each vector, and traces within their standard errors."""

import pytest
import torch

from nngeo_core.linear_algebra.spectral_density import SpectralDensity, spectral_density
from nngeo_core.linear_algebra.stochastic import random_signs

CPU = torch.device("cpu")


def _found(samples: int = 6, steps: int = 5) -> tuple[torch.Tensor, SpectralDensity]:
    rows = torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = rows.T @ rows / 20
    generator = torch.Generator().manual_seed(1)
    return matrix, spectral_density(lambda v: v @ matrix, 20, samples, steps, torch.float64, CPU, generator)


def test_moments_are_exact_for_each_vector() -> None:
    matrix, found = _found()
    z = random_signs((1, 20), torch.float64, CPU, torch.Generator().manual_seed(1))[0]
    for power in range(10):
        expected = z @ torch.linalg.matrix_power(matrix, power) @ z / 20
        assert (found.nodes[0] ** power * found.weights[0]).sum() == pytest.approx(expected.item(), rel=1e-10)


def test_all_steps_give_the_trace_of_any_function_to_sampling() -> None:
    matrix, found = _found(samples=200, steps=30)
    estimate = found.trace_of(lambda w: (w + 0.1).log())
    expected = (matrix + 0.1 * torch.eye(20, dtype=torch.float64)).logdet()
    assert abs(estimate.value - expected) <= 4 * estimate.standard_error
    assert 0 < estimate.standard_error < 2


def test_the_density_integrates_to_one() -> None:
    _, found = _found()
    points = torch.linspace(-3, 8, 2001, dtype=torch.float64)
    heights = found.density(points, 0.1)
    assert heights.shape == points.shape
    assert torch.trapezoid(heights, points).item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(("samples", "steps"), [(1, 3), (2, 0)])
def test_bad_counts(samples: int, steps: int) -> None:
    with pytest.raises(ValueError, match="samples is at least 2 and steps at least 1"):
        _found(samples, steps)
