"""What a sweep allocates at its peak: no more than a plain training step of a batch, and the memory budget on top."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from nngeo_core import Accumulator, GaussianLikelihood, JacobianBatch, populate, random_pvector
from nngeo_core.jacobians.contraction import BLOCK_BYTES
from nngeo_generators import HooksGenerator, chunking

MIB = 2**20
IMAGES = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PAIRS = [(pair,) for pair in IMAGES.split(2)]  # a loader: a tuple of tensors would be one batch


class Squares(Accumulator):
    """The diagonal, layer by layer."""

    def accumulate(self, batch: JacobianBatch) -> None:
        for layer_id, jacobian in batch.layers.items():
            self.add(layer_id, jacobian.sum_of_squares())

    def finalize(self) -> dict[str, Tensor]:
        return self.sums


@pytest.fixture
def convnet(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """Its activations outweigh its parameters; what a CPU likes best does not bound the tensors before the budget does."""
    monkeypatch.setattr(chunking, "LARGEST_TENSOR", {})
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 40))


def peak(work: Callable[[], Any]) -> int:
    """The bytes of the tensors that live at once at most, without those from before; torch's allocator reports each."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    reports = sorted((e.start_ns(), k, e.nbytes()) for k, e in enumerate(events) if e.name() == "[memory]")
    live = most = 0
    for _, _, nbytes in reports:
        live += nbytes
        most = max(most, live)
    return most


def training(model: nn.Module, images: Tensor) -> int:
    def step() -> None:
        nn.functional.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.long)).backward()

    found = peak(step)
    model.zero_grad(set_to_none=True)
    return found


def sweep(model: nn.Module, examples: Any, budget: int | None) -> int:
    def work() -> None:
        generator = HooksGenerator(model, GaussianLikelihood(), memory_budget=budget)
        populate(generator, examples, [Squares(generator.layer_collection)])

    return peak(work)


def product(model: nn.Module, examples: Any, budget: int | None) -> int:
    generator = HooksGenerator(model, GaussianLikelihood(), memory_budget=budget)
    v = random_pvector(generator.layer_collection)
    generator.product(v, IMAGES[:2])  # loads what a first use does
    return peak(lambda: generator.product(v, examples))


def test_the_counter_counts_what_lives_at_once() -> None:
    def work() -> None:
        kept = torch.empty(MIB, dtype=torch.uint8)
        for _ in range(3):
            torch.empty(2 * MIB, dtype=torch.uint8)
        del kept

    assert 3 * MIB <= peak(work) < 3.1 * MIB


@pytest.mark.parametrize("budget", [2 * MIB, 8 * MIB, 32 * MIB])
def test_one_large_batch(budget: int, convnet: nn.Module) -> None:
    """Without a budget, all 40 directions of all 24 images take some 85 MiB at once."""
    allowed = training(convnet, IMAGES) + budget
    assert sweep(convnet, IMAGES, budget) <= allowed
    assert budget < 32 * MIB or sweep(convnet, IMAGES, None) > 2 * allowed


class Sequences(nn.Module):
    """The mean over time of what a layer makes of sequences, and a head."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(32, 20)

    def forward(self, x: Tensor) -> Any:
        found = self.layer(x)
        return self.head((found[0] if isinstance(found, tuple) else found).mean(1))


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True),
        lambda: nn.GRU(32, 32, batch_first=True),
        lambda: nn.Sequential(nn.Linear(32, 400), nn.Tanh(), nn.Linear(400, 32)),
    ],
    ids=["attention", "gru", "wide"],
)
def test_gradients_inside_of_layers_count(build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that no layer keeps, and those that replayed modules find, take as much as those kept."""
    monkeypatch.setattr(chunking, "LARGEST_TENSOR", {})
    model = Sequences(build()).eval()
    x = torch.randn(32, 64, 32, generator=torch.Generator().manual_seed(0))
    sweep(model, x[:2], None)  # loads what a first use does
    assert sweep(model, x, 16 * MIB) <= training(model, x) + 16 * MIB


@pytest.mark.parametrize("budget", [2 * MIB, 6 * MIB])
def test_small_batches_are_joined_within_the_budget(budget: int, convnet: nn.Module) -> None:
    allowed = training(convnet, IMAGES[:2]) + budget
    assert sweep(convnet, PAIRS, budget) <= allowed
    assert budget < 6 * MIB or sweep(convnet, PAIRS, None) > 2 * allowed


def test_products_join_within_the_budget(convnet: nn.Module) -> None:
    allowed = training(convnet, IMAGES[:2]) + MIB
    assert product(convnet, PAIRS, MIB) <= allowed
    assert product(convnet, PAIRS, None) > 1.5 * allowed


@pytest.mark.parametrize("form", [False, True])
def test_products_cut_a_large_batch_to_the_budget(form: bool, convnet: nn.Module) -> None:
    """The graph of one large batch would not fit; the result is that of the whole."""

    def result(budget: int | None) -> Tensor:
        generator = HooksGenerator(convnet, GaussianLikelihood(), memory_budget=budget)
        v = random_pvector(generator.layer_collection, generator=torch.Generator().manual_seed(0))
        if form:
            return generator.quadratic_form(v, IMAGES)
        return generator.product(v, IMAGES).get_flat_representation()

    assert product(convnet, IMAGES, MIB) <= training(convnet, IMAGES[:2]) + MIB < product(convnet, IMAGES, None)
    torch.testing.assert_close(result(MIB), result(None), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("inputs", "outputs"), [(300, 3), (20, 100), (400, 4)])
def test_blocks_of_many_examples_take_little_beside_themselves(inputs: int, outputs: int) -> None:
    """Not a matrix of all inputs, or of all outputs, for each example: that would be 290, 80 and 512 MiB."""
    model, x = nn.Linear(inputs, outputs), torch.randn(800, inputs)
    layer = HooksGenerator(model, GaussianLikelihood()).jacobian(x).layers[""]
    result = 4 * sum(p.numel() for p in model.parameters()) ** 2
    assert peak(layer.second_moment) <= result + 2 * BLOCK_BYTES
