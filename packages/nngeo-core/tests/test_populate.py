"""populate: one sweep for many accumulators, as many passes as the neediest asks, and a bar that counts examples."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.layer import LinearLayer
from nngeo_core.likelihoods.gaussian import GaussianLikelihood
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.examples import Batch
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.populate import populate, with_progress

X = torch.arange(12.0, dtype=torch.float64).view(4, 3)
LAYERS = LayerCollection({"": LinearLayer(3, 1, bias=False)})


class LinearGenerator(Generator):
    """The Jacobian of `nn.Linear(3, 1, bias=False)` is its input, sent as two equal slices of directions."""

    name = "linear"
    closed = 0

    def _jacobian(self, batch: Batch, directions: slice | None) -> JacobianBatch:
        return next(iter(self.stream([batch])))

    def stream(self, batches: Iterable[Batch]) -> Iterator[JacobianBatch]:
        assert not torch.is_grad_enabled()
        try:
            for batch in batches:
                for k in range(2):
                    layers = {"": DenseJacobian(batch.unsqueeze(0))}
                    yield JacobianBatch(layers, len(batch), slice(k, k + 1), 2, batch.dtype, batch.device)
        finally:
            self.closed += 1

    def _jvp(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        return torch.cat(list(batches)) @ v

    def _vjp(self, u: Tensor, batches: Iterable[Batch]) -> Tensor:
        return u.flatten() @ torch.cat(list(batches))

    def _product(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        return self._vjp(self._jvp(v, [batches := torch.cat(list(batches))]), [batches]) / len(batches)


class Moment(Accumulator):
    """J^T J; keeps a log of the passes."""

    def __init__(self, layer_collection: LayerCollection) -> None:
        super().__init__(layer_collection)
        self.log: list[Any] = []

    def begin_pass(self, number: int) -> None:
        super().begin_pass(number)
        self.log.append(number)

    def accumulate(self, batch: JacobianBatch) -> None:
        self.log.append(batch.directions.start)
        if batch.first_slice:
            self.add("moment", batch.layers[""].second_moment())

    def finalize(self) -> Tensor:
        return self.sums["moment"] / self.n_examples


class TwoPasses(Moment):
    passes = 2


@pytest.fixture
def generator() -> LinearGenerator:
    return LinearGenerator(nn.Linear(3, 1, bias=False).double(), GaussianLikelihood(), layer_collection=LAYERS)


@pytest.mark.parametrize("examples", [X, iter([X]), [X[:3], X[3:]]], ids=["tensor", "iterator", "loader"])
def test_accumulators_see_every_slice_of_every_batch(examples: Any, generator: LinearGenerator) -> None:
    first, second = Moment(LAYERS), Moment(LAYERS)
    populate(generator, examples, [first, second])
    assert first.n_examples == second.n_examples == 4
    assert second.log[:3] == [0, 0, 1] and first.log == second.log


def test_sums_are_averaged_over_examples_alone(generator: LinearGenerator) -> None:
    moment = Moment(LAYERS)
    populate(generator, X, [moment])
    assert torch.allclose(moment.finalize(), X.T @ X / 4)


def test_only_the_needy_take_part_in_later_passes(generator: LinearGenerator) -> None:
    one, two = Moment(LAYERS), TwoPasses(LAYERS)
    populate(generator, X, [one, two])
    assert (one.log, two.log) == ([0, 0, 1], [0, 0, 1, 1, 0, 1])
    assert (one.n_examples, two.n_examples, generator.closed) == (4, 4, 2)


def test_an_iterator_is_refused_for_several_passes_before_it_is_read(generator: LinearGenerator) -> None:
    examples = iter([X])
    with pytest.raises(ValueError) as error:
        populate(generator, examples, [Moment(LAYERS), TwoPasses(LAYERS)])
    assert str(error.value) == (
        "2 passes over the data are needed and list_iterator can be read only once; give a loader that can be iterated again"
    )
    assert next(examples) is X


@pytest.mark.parametrize("examples", [[], iter([]), X[:0]], ids=["list", "iterator", "empty-batch"])
def test_no_examples_are_refused(examples: Any, generator: LinearGenerator) -> None:
    with pytest.raises(ValueError) as error:
        populate(generator, examples, [Moment(LAYERS)])
    name = type(examples).__name__
    assert str(error.value) == f"no examples: {name} is empty; a matrix needs at least one example"


def test_an_exception_closes_the_stream(generator: LinearGenerator) -> None:
    class Failing(Moment):
        def accumulate(self, batch: JacobianBatch) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        populate(generator, X, [Failing(LAYERS)])
    assert generator.closed == 1


def test_a_sweep_goes_on_from_a_loaded_state(generator: LinearGenerator) -> None:
    whole, first, second = Moment(LAYERS), Moment(LAYERS), Moment(LAYERS)
    populate(generator, X, [whole])
    populate(generator, X[:3], [first])
    second.load_state_dict(first.state_dict())
    populate(generator, X[3:], [second])
    assert second.n_examples == 4 and torch.allclose(second.finalize(), whole.finalize())


def test_progress_passes_the_batches_on() -> None:
    batches = list(with_progress([X, X[:1]], None))
    assert [len(batch) for batch in batches] == [4, 1]


def test_progress_counts_batches_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=2)
    assert [len(batch[0]) for batch in with_progress(loader, "pass 1/1")] == [2, 2]
    shown = capsys.readouterr().err
    assert "pass 1/1: 100%" in shown and "2/2" in shown and "examples/s" in shown


def test_progress_is_shown_for_each_pass_on_request(
    generator: LinearGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    populate(generator, X, [TwoPasses(LAYERS)])
    assert capsys.readouterr().err == ""
    populate(generator, X, [TwoPasses(LAYERS)], progress=True)
    shown = capsys.readouterr().err
    assert "pass 1/2: 100%" in shown and "pass 2/2: 100%" in shown
