"""The model and the process are as before: after a pass, and after an exception anywhere in one."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nngeo_core import Accumulator, GaussianLikelihood, JacobianBatch, populate, random_fvector, random_pvector
from nngeo_generators import HooksGenerator

X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Busy(nn.Module):
    """A model that writes to its buffers, draws random numbers without using them, and may fail half-way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.fails_at = -1
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("cache", None)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.first(x)))
        with torch.no_grad():
            self.seen += len(x)
            self.mean.data.add_(h.mean(0))
            self.replaced = self.replaced + 1
            self.cache = h.detach()
            self.register_buffer(f"of_size_{len(x)}", h.detach())
        torch.rand(2), numpy.random.rand(), random.random()
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("half-way")
        return self.second(h)


@pytest.fixture
def model() -> Busy:
    model = Busy().double().eval()
    model.first.requires_grad_(False)
    model.second.weight.grad = torch.ones(2, 4, dtype=torch.float64)
    model.second.train()
    model.first.register_forward_hook(lambda module, args, output: None)
    model.first.register_forward_pre_hook(lambda module, args: None)
    return model


def trace(model: nn.Module) -> Any:
    """Everything that must not change."""
    parameters = [(name, id(p), p.requires_grad, p.tolist(), id(p.grad)) for name, p in model.named_parameters()]
    grads = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    modules = [
        (m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks), list(m._parameters)) for m in model.modules()
    ]
    buffers = [
        (name, id(b), None if b is None else b.tolist()) for m in model.modules() for name, b in m._buffers.items()
    ]
    process = torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), random.getstate()
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return parameters, grads, modules, buffers, process, modes


class Count(Accumulator):
    """Counts slices, and may fail at one."""

    fails_at = -1

    def accumulate(self, batch: JacobianBatch) -> None:
        self.add("slices", torch.ones(()))
        if self.sums["slices"] == self.fails_at:
            raise RuntimeError("half-way")

    def finalize(self) -> Tensor:
        return self.sums["slices"]


def sweep(model: nn.Module, examples: Any, fails_at: int = -1) -> None:
    generator = HooksGenerator(model, GaussianLikelihood(), memory_budget=1)
    count = Count(generator.layer_collection)
    count.fails_at = fails_at
    populate(generator, examples, [count])


def jacobian(model: nn.Module, examples: Any) -> None:
    HooksGenerator(model, GaussianLikelihood()).jacobian(examples)


def jvp(model: nn.Module, examples: Any) -> None:
    generator = HooksGenerator(model, GaussianLikelihood())
    generator.jvp(random_pvector(generator.layer_collection, generator=torch.Generator()), examples)


def vjp(model: nn.Module, examples: Any) -> None:
    generator = HooksGenerator(model, GaussianLikelihood())
    generator.vjp(random_fvector(6, 2, generator=torch.Generator()), examples)


def product(model: nn.Module, examples: Any) -> None:
    generator = HooksGenerator(model, GaussianLikelihood())
    generator.product(random_pvector(generator.layer_collection, generator=torch.Generator()), examples)


passes = pytest.mark.parametrize("run", [sweep, jacobian, jvp, vjp, product], ids=lambda run: run.__name__)


@passes
def test_a_pass_leaves_no_trace(run: Callable[..., None], model: Busy) -> None:
    before = trace(model)
    run(model, X)
    assert trace(model) == before


@passes
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_an_exception_in_the_model_leaves_no_trace(run: Callable[..., None], fails_at: int, model: Busy) -> None:
    model.fails_at = fails_at if run in (sweep, jacobian) else 1
    before = trace(model)
    with pytest.raises(RuntimeError, match="half-way"):
        run(model, X)
    assert trace(model) == before


@passes
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_is_kept(run: Callable[..., None], mode: Callable[[], Any], model: Busy) -> None:
    with mode():
        before = trace(model)
        run(model, X)
        assert trace(model) == before


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_an_exception_in_the_loader_leaves_no_trace(fails_at: int, model: Busy) -> None:
    def loader() -> Iterator[Tensor]:
        for number in range(3):
            torch.rand(3), random.random()
            if number == fails_at:
                raise RuntimeError("half-way")
            yield X

    before = trace(model)
    with pytest.raises(RuntimeError, match="half-way"):
        sweep(model, loader())
    assert trace(model) == before


@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_an_exception_in_an_accumulator_leaves_no_trace(fails_at: int, model: Busy) -> None:
    before = trace(model)
    with pytest.raises(RuntimeError, match="half-way"):
        sweep(model, X, fails_at)
    assert trace(model) == before


@pytest.mark.parametrize("run", [sweep, jvp, vjp, product], ids=lambda run: run.__name__)
def test_a_shuffling_loader_does_not_advance_the_global_random_state(run: Callable[..., None], model: Busy) -> None:
    loader = DataLoader(TensorDataset(X), batch_size=2, shuffle=True)
    before = trace(model)
    run(model, loader)
    assert trace(model) == before


def test_inputs_are_not_changed_and_need_no_gradient(model: Busy) -> None:
    inputs = X.clone().requires_grad_()
    sweep(model, inputs)
    assert inputs.equal(X) and inputs.grad is None and inputs.requires_grad


def test_a_stream_that_is_left_early_leaves_no_hooks(model: Busy) -> None:
    generator, before = HooksGenerator(model, GaussianLikelihood(), memory_budget=1), trace(model)
    batches = []
    for batch in generator.stream([X, X]):
        batches.append(batch)
        break
    assert [len(module._forward_hooks) for module in model.modules()] == [len(hooks) for _, hooks, _, _ in before[2]]
    assert len(batches) == 1
