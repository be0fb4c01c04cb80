"""What a computation allocates is free once its result is: none of it lives on, where not even a garbage collector looks."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import ClassifLogits, GaussianLikelihood, NNGeoError, PVector, random_pvector
from nngeo_core.sweep.untouched import undisturbed
from nngeo_generators import HessianGenerator, HooksGenerator
from nngeo_generators.chunking import measure_graph

from .awkward import Awkward
from .awkward_networks import CASES

Hooks = Callable[..., HooksGenerator]


def left(*works: Callable[[], object]) -> int:
    """How many tensors and nodes of graphs are left after doing things once more; they may be refused."""

    def everything() -> int:
        for work in works:
            with suppress(NNGeoError, RuntimeError):
                work()
        gc.collect()
        return sum(issubclass(type(x), Tensor) or "Backward" in type(x).__name__ for x in gc.get_objects())

    everything()  # loads what a first use does
    gc.freeze()  # what is there is not looked at again and again
    try:
        once = everything()  # with what a model keeps of its last call
        return everything() - once
    finally:
        gc.unfreeze()


def computations(build: Callable[[], HooksGenerator], batches: list[Any]) -> Iterator[Callable[[], object]]:
    """A sweep, the products of both directions, and the Jacobian of a batch, each by a generator of its own."""

    def sweep() -> None:
        generator = build()
        with undisturbed(generator.model, generator.device), torch.no_grad():
            for _ in generator.stream(batches):
                pass

    def products() -> None:
        generator = build()
        v = random_pvector(generator.layer_collection, dtype=torch.float64)
        generator.product(v, batches)
        generator.vjp(generator.jvp(v, batches), batches)

    yield sweep
    yield products
    yield lambda: build().jacobian(batches[0])


@pytest.fixture
def model() -> nn.Module:
    """Whose activations keep what they returned, as relu, tanh and softmax do."""
    return nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2), nn.Softmax(1)
    ).double()


def test_a_tensor_that_lives_on_is_counted() -> None:
    kept: list[Tensor] = []
    assert left(lambda: kept.append(torch.ones(()))) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_left_of_awkward_models(name: str, hooks: Hooks) -> None:
    case: Awkward = CASES[name]
    model = case.build().double()
    model.train("in_training" in case.build.__name__)
    assert left(*computations(lambda: hooks(model), [(some,) for some in case.inputs.split([3, 2])])) == 0


@pytest.mark.parametrize("options", [{"check": "every-batch"}, {"check": "off"}, {"memory_budget": 400}], ids=str)
def test_nothing_is_left_whatever_the_check_and_the_budget(
    options: dict[str, Any], model: nn.Module, hooks: Hooks
) -> None:
    x = torch.randn(20, 3, dtype=torch.float64)
    for likelihood in (GaussianLikelihood(), ClassifLogits()):
        build = partial(hooks, model, likelihood, **options)
        assert left(*computations(build, [(some,) for some in x.split(16)])) == 0


def test_nothing_is_left_of_a_hessian(model: nn.Module) -> None:
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)

    def product() -> PVector:
        generator = HessianGenerator(model, GaussianLikelihood())
        return generator.product(random_pvector(generator.layer_collection, dtype=torch.float64), [(x, y)])

    assert left(product) == 0


def test_nothing_is_left_of_what_failed_half_way(model: nn.Module, hooks: Hooks) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("half-way")

    model[4].register_forward_hook(fails)
    assert left(lambda: hooks(model).jacobian(torch.randn(5, 3, dtype=torch.float64))) == 0


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_a_generator_keeps_nothing_of_a_batch_that_failed(last: int, model: nn.Module, hooks: Hooks) -> None:
    """An interruption in any of its passes: the graph of an example would hold the whole batch until the next one."""
    calls = 0

    def fails(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == last:
            raise KeyboardInterrupt

    model.register_forward_hook(fails)
    generator, batch = hooks(model), torch.randn(5, 3, dtype=torch.float64)
    with pytest.raises(KeyboardInterrupt):
        generator.jacobian(batch)
    gone = weakref.ref(batch)
    del batch
    gc.collect()
    assert gone() is None
    assert generator.jacobian(torch.ones(1, 3, dtype=torch.float64)).n_examples == 1


def test_a_measured_graph_can_be_gone_back_through(model: nn.Module) -> None:
    """And what differentiates on the way, with a graph of that, is what it is without measuring."""
    x = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)

    def slope() -> Tensor:
        (found,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return found

    def gradients(outputs: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs.sum(), list(model.parameters()), allow_unused=True, materialize_grads=True)

    measured, graph = measure_graph(partial(model, x), model.parameters())
    assert graph.total >= graph.largest > 0
    torch.testing.assert_close(gradients(measured), gradients(model(x)), rtol=0, atol=0)
    torch.testing.assert_close(measure_graph(slope, model.parameters())[0], slope(), rtol=0, atol=0)
