"""GaussianLikelihood: regression with unit covariance."""

import pytest
import torch

from nngeo_core import GaussianLikelihood
from nngeo_core.testing import relative_error

N, C = 3, 4


def test_directions_and_metric_are_the_expectation_over_targets() -> None:
    """grad log N(y; f, I) = y - f; y = f +- sqrt(3) e_k or f, of weights 1/6 and 2/3, has all the moments needed."""
    outputs = torch.randn(N, C, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros(N, C, C, dtype=torch.float64)
    for k in range(C):
        for sign in (-1, 1):
            y = outputs.detach().clone()
            y[:, k] += sign * 3**0.5
            log_p = -(y - outputs).square().sum() / 2
            (gradient,) = torch.autograd.grad(log_p, outputs)
            expected += gradient[:, :, None] * gradient[:, None, :] / 6
    v = GaussianLikelihood().directions(outputs.detach(), None, slice(0, C))
    assert v.shape == (C, N, C)
    assert relative_error(torch.einsum("kna,knb->nab", v, v), expected) <= 1e-14
    u = torch.randn(N, C, dtype=torch.float64)
    assert relative_error(GaussianLikelihood().metric(outputs, u), torch.einsum("nab,nb->na", expected, u)) <= 1e-14


@pytest.mark.parametrize("width", [1, 3, C])
def test_directions_come_in_chunks(width: int) -> None:
    outputs = torch.randn(N, C, dtype=torch.float64)
    slices = [slice(k, min(C, k + width)) for k in range(0, C, width)]
    chunks = torch.cat([GaussianLikelihood().directions(outputs, None, chosen) for chosen in slices])
    assert torch.equal(chunks, GaussianLikelihood().directions(outputs, None, slice(0, C)))
    assert chunks.dtype == torch.float64


def test_counts_and_shapes() -> None:
    likelihood, outputs = GaussianLikelihood(), torch.ones(N, C)
    likelihood.check(outputs)
    assert (likelihood.n_output(outputs), likelihood.n_directions(outputs)) == (C, C)
    for shape in ((3,), (3, 2, 4)):
        likelihood.check(torch.ones(shape))
        assert likelihood.n_directions(torch.ones(shape)) == torch.ones(shape)[0].numel()
