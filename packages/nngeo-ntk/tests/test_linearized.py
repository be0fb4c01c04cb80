"""LinearizedModel: against gradient descent in parameter space, and the matrix exponential."""

import math

import pytest
import torch

from nngeo_core import FVector, GramMatrix, ShapeError
from nngeo_core.testing import relative_error
from nngeo_ntk import LinearizedModel

from .helpers import Problem, problem


def linearized(p: Problem, kind: str = "dense") -> LinearizedModel:
    return LinearizedModel(GramMatrix(p.case.model, p.train, kind), p.outputs(p.train), p.targets)


@pytest.mark.parametrize("time", [0.0, 0.01, 1.0, 100.0])
def test_it_is_the_solution_of_the_flow(time: float) -> None:
    p = problem()
    kernel, cross = p.kernel(p.train, p.train), p.kernel(p.test, p.train)
    residual = (p.outputs(p.train) - p.targets).get_flat_representation()
    decayed = torch.linalg.matrix_exp(-time * kernel) @ residual
    found, model = linearized(p), p.case.model
    fit = p.targets.get_flat_representation() + decayed
    assert relative_error(found.fit(time).get_flat_representation(), fit) <= 1e-10
    moved = cross @ torch.linalg.lstsq(kernel, residual - decayed, rcond=1e-13, driver="gelsd").solution
    expected = p.outputs(p.test).get_flat_representation() - moved
    predicted = found.predict(GramMatrix(model, p.test, loader2=p.train), p.outputs(p.test), time)
    assert relative_error(predicted.get_flat_representation(), expected) <= 1e-7


def test_it_converges_to_where_gradient_descent_ends() -> None:
    p = problem("linear-one-layer")
    rows, columns = p.jacobian(p.train).flatten(0, 1), p.jacobian(p.test).flatten(0, 1)
    start, y = p.outputs(p.train).get_flat_representation(), p.targets.get_flat_representation()
    w = torch.zeros(rows.shape[1], dtype=torch.float64)
    rate = 1 / torch.linalg.matrix_norm(rows, 2) ** 2
    for _ in range(20_000):
        w -= rate * (rows.T @ (start + rows @ w - y))
    found, cross = linearized(p), GramMatrix(p.case.model, p.test, loader2=p.train)
    expected = p.outputs(p.test).get_flat_representation() + columns @ w
    assert relative_error(found.predict(cross, p.outputs(p.test)).get_flat_representation(), expected) <= 1e-8
    assert relative_error(found.fit().get_flat_representation(), start + rows @ w) <= 1e-8


def test_small_steps_of_gradient_descent_follow_the_flow() -> None:
    p, steps, rate = problem(), 4000, 1e-4
    rows = p.jacobian(p.train).flatten(0, 1)
    start, y = p.outputs(p.train).get_flat_representation(), p.targets.get_flat_representation()
    w = torch.zeros(rows.shape[1], dtype=torch.float64)
    for _ in range(steps):
        w -= rate * (rows.T @ (start + rows @ w - y))
    found = linearized(p).fit(steps * rate)
    assert relative_error(found.get_flat_representation(), start + rows @ w) <= 2e-3


def test_a_kernel_of_examples_alone_serves_every_output() -> None:
    p = problem()
    kernel = GramMatrix(p.case.model, p.train, "trace").get_dense_tensor()[0, :, 0]
    decay = torch.linalg.matrix_exp(-0.3 * kernel)
    expected = p.targets.vector_repr + (p.outputs(p.train) - p.targets).vector_repr @ decay
    assert relative_error(linearized(p, "trace").fit(0.3).vector_repr, expected) <= 1e-10


def test_time_runs_forward_from_the_models_outputs() -> None:
    p = problem()
    found = linearized(p)
    assert torch.equal(found.fit(0.0).vector_repr, p.outputs(p.train).vector_repr)
    for time in (-1.0, math.nan):
        with pytest.raises(ValueError, match="time is a number >= 0"):
            found.fit(time)
    with pytest.raises(ShapeError, match="outputs have shape"):
        LinearizedModel(found.kernel, FVector(torch.ones(3, 6)), p.targets)


@pytest.mark.parametrize("time", [1e3, 1e4, 1e6, 1e8, 1e39, math.inf])
def test_rounding_of_zero_eigenvalues_does_not_grow_with_time(time: float) -> None:
    """In float32, with more outputs of all examples than parameters: against float64, without what lies outside."""
    torch.manual_seed(0)
    single = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    double = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
    double.load_state_dict(single.state_dict())
    train, test, y = torch.randn(60, 2), torch.randn(7, 2), torch.randn(2, 60)
    found = []
    for model, dtype in ((single, torch.float32), (double, torch.float64)):
        x, z = train.to(dtype), test.to(dtype)
        with torch.no_grad():
            starts = [FVector(model(inputs).T) for inputs in (x, z)]
        fit = LinearizedModel(GramMatrix(model, x), starts[0], FVector(y.to(dtype)))
        found.append(fit.predict(GramMatrix(model, z, loader2=x), starts[1], time).vector_repr)
    assert relative_error(found[0].double(), found[1]) <= 2e-2
