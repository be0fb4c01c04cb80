"""GaussianProcess: against Bayesian regression in parameter space, and torch's normal distribution."""

import pytest
import torch

from nngeo_core import FVector, GramMatrix, ShapeError
from nngeo_core.testing import relative_error
from nngeo_ntk import GaussianProcess

from .helpers import problem


def test_it_is_the_posterior_of_a_normal_prior_on_the_change_of_parameters() -> None:
    p, noise = problem(), 0.3
    rows, columns = p.jacobian(p.train).flatten(0, 1), p.jacobian(p.test).flatten(0, 1)
    residual = (p.targets - p.outputs(p.train)).get_flat_representation()
    covariance = torch.linalg.inv(rows.T @ rows / noise + torch.eye(rows.shape[1], dtype=torch.float64))
    kernel, cross, test = (
        GramMatrix(p.case.model, x, loader2=y) for x, y in ((p.train, None), (p.test, p.train), (p.test, None))
    )
    process = GaussianProcess(kernel, p.targets, noise, p.outputs(p.train))
    expected = p.outputs(p.test).get_flat_representation() + columns @ covariance @ (rows.T @ residual) / noise
    found = process.mean(cross, p.outputs(p.test))
    assert relative_error(found.get_flat_representation(), expected) <= 1e-10
    posterior = process.covariance(cross, test).get_dense_tensor().reshape(12, 12)
    assert relative_error(posterior, columns @ covariance @ columns.T) <= 1e-10
    prior = p.kernel(p.train, p.train) + noise * torch.eye(21, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(21, dtype=torch.float64), prior)
    assert relative_error(process.log_marginal_likelihood(), normal.log_prob(residual)) <= 1e-10


@pytest.mark.parametrize("representation", ["blockdiag", "trace"])
def test_independent_outputs_have_processes_of_their_own(representation: str) -> None:
    p, noise = problem(), 0.3
    kernel, cross, test = (
        GramMatrix(p.case.model, x, representation, loader2=y)
        for x, y in ((p.train, None), (p.test, p.train), (p.test, None))
    )
    process = GaussianProcess(kernel, p.targets, noise)
    mean, likelihood = process.mean(cross).vector_repr, process.log_marginal_likelihood()
    posterior = process.covariance(cross, test).get_dense_tensor()
    total = torch.zeros((), dtype=torch.float64)
    for c, y in enumerate(p.targets.vector_repr):
        k = c if representation == "blockdiag" else 0
        one, across, between = (x.get_dense_tensor()[k, :, k] for x in (kernel, cross, test))
        damped = one + noise * torch.eye(7, dtype=torch.float64)
        assert relative_error(mean[c], across @ torch.linalg.solve(damped, y)) <= 1e-10
        expected = between - across @ torch.linalg.solve(damped, across.T)
        assert relative_error(posterior[k, :, k], expected) <= 1e-10
        total += torch.distributions.MultivariateNormal(torch.zeros_like(y), damped).log_prob(y)
    assert relative_error(likelihood, total) <= 1e-10


def test_what_does_not_fit_is_refused() -> None:
    p = problem()
    kernel = GramMatrix(p.case.model, p.train)
    with pytest.raises(TypeError, match="stored entries, got FMatImplicit; compute the kernel as 'dense'"):
        GaussianProcess(GramMatrix(p.case.model, p.train, "implicit"), p.targets, 1.0)
    with pytest.raises(ValueError, match=">= 0"):
        GaussianProcess(kernel, p.targets, -1.0)
    with pytest.raises(ShapeError, match="prior_mean have shape"):
        GaussianProcess(kernel, p.targets, 1.0, FVector(torch.ones(3, 6)))
