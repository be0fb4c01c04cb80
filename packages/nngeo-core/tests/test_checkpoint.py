"""Checkpoint: interrupted sweeps go on where they were, in every pass, and no other computation takes their place."""

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nngeo_core import ClassifLogits, GaussianLikelihood, LayerCollection, LinearLayer, StorageError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.storage import read_file
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.checkpoint import Checkpoint, checkpoint_in
from nngeo_core.sweep.examples import Batch
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.populate import collect, populate

LAYERS = LayerCollection({"": LinearLayer(3, 1, bias=False)})
X = torch.randn(22, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Stopped(Exception):
    """What ends a pass early."""


class JoiningGenerator(Generator):
    """The Jacobian of `nn.Linear(3, 1, bias=False)` is its input; up to five examples are put together."""

    name = "joining"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.joined: list[int] = []

    def _jacobian(self, batch: Batch, directions: slice | None) -> JacobianBatch:
        return next(iter(self.stream([batch])))

    def stream(self, batches: Iterable[Batch]) -> Iterator[JacobianBatch]:
        waiting: list[Tensor] = []
        for batch in batches:
            if waiting and sum(map(len, waiting)) + len(batch) > 5:
                yield self._joined(waiting)
                waiting = []
            waiting.append(batch)
        if waiting:
            yield self._joined(waiting)

    def _joined(self, waiting: list[Tensor]) -> JacobianBatch:
        rows = torch.cat(waiting)
        self.joined.append(len(rows))
        return JacobianBatch({"": DenseJacobian(rows[None])}, len(rows), slice(0, 1), 1, rows.dtype, rows.device)

    def _jvp(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        raise NotImplementedError

    _vjp = _product = _jvp


class Rows(Accumulator):
    """A sum whose last bits depend on the order."""

    def accumulate(self, batch: JacobianBatch) -> None:
        self.add("rows", batch.layers[""].to_dense()[0].exp().sum(0))

    def finalize(self) -> Tensor:
        return self.average("rows")


class Whitened(Rows):
    """A second pass that needs the first."""

    passes = 2

    def begin_pass(self, number: int) -> None:
        if number:
            self.sums = {"scale": self.sums["rows"] / self.n_examples}
        super().begin_pass(number)

    def accumulate(self, batch: JacobianBatch) -> None:
        super().accumulate(batch)
        if "scale" in self.sums:
            self.sums["rows"] += (batch.layers[""].to_dense()[0] / self.sums["scale"]).square().sum(0)


class Interrupted:
    """Batches of a loader; reading ends with an exception after so many of them, counted over all passes."""

    def __init__(self, loader: Iterable[Any], stop: int) -> None:
        self.loader, self.left = loader, stop

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if not self.left:
                raise Stopped
            self.left -= 1
            yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)


class Dropped(nn.Linear):
    """A linear layer with a buffer."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            super().__init__(3, 1, bias=False)
        self.register_buffer("mean", torch.zeros(3))
        nn.init.ones_(self.weight)


def generator(likelihood: Any = None, model: nn.Module | None = None) -> JoiningGenerator:
    return JoiningGenerator(model or Dropped(), likelihood or GaussianLikelihood(), layer_collection=LAYERS)


def sweep(
    loader: Any, folder: Path | None, every: int = 3, kinds: Iterable[type[Accumulator]] = (Rows, Whitened)
) -> list[Tensor]:
    return collect(generator(), loader, [kind(LAYERS) for kind in kinds], checkpoint=checkpoint_in(folder, every))


def batches() -> list[Tensor]:
    return list(X.split([2, 1, 4, 3, 2, 2, 1, 1, 5, 1]))


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("every", [1, 3, 10, 100])
def test_a_sweep_that_stops_anywhere_goes_on_to_the_same_bits(tmp_path: Path, every: int) -> None:
    expected = sweep(batches(), tmp_path / "whole", every)
    torch.testing.assert_close(expected, sweep(batches(), None))
    for stop in (1, 2, 4, 7, 9, 10, 12, 19):
        with pytest.raises(Stopped):
            sweep(Interrupted(batches(), stop), tmp_path / "folder", every)
        assert same(sweep(batches(), tmp_path / "folder", every), expected)
        assert not any((tmp_path / "folder").iterdir() if (tmp_path / "folder").exists() else ())


def test_a_sweep_that_stops_again_and_again_gets_on(tmp_path: Path) -> None:
    expected = sweep(batches(), tmp_path / "whole", 2)
    for stop in (4, 7, 9, 13, 5, 9):
        with pytest.raises(Stopped):
            sweep(Interrupted(batches(), stop), tmp_path / "folder", 2)
    assert same(sweep(Interrupted(batches(), 10), tmp_path / "folder", 2), expected)


def test_examples_are_joined_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, first, second = generator(), generator(), generator()
    checkpoint = Checkpoint(tmp_path, 4)
    populate(whole, batches(), [Rows(LAYERS)], checkpoint=Checkpoint(tmp_path / "whole", 4))
    with pytest.raises(Stopped):
        populate(first, Interrupted(batches(), 6), [Rows(LAYERS)], checkpoint=checkpoint)
    populate(second, batches(), [Rows(LAYERS)], checkpoint=checkpoint)
    assert whole.joined == [3, 4, 3, 5, 1, 5, 1]
    assert first.joined == [3, 4, 3]
    assert second.joined == [2, 5, 1, 5, 1]  # the first batch is shown to the generator again


def test_the_file_says_how_far_it_is(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        sweep(Interrupted(batches(), 15), tmp_path)
    (path,) = tmp_path.iterdir()
    stored = read_file(path, "checkpoint")
    assert path == Checkpoint(tmp_path).path == tmp_path / "checkpoint-0.safetensors"
    assert (stored.header["place"]["number"], stored.header["place"]["batches"], stored.header["examples"]) == (
        1,
        3,
        22,
    )
    assert int(stored.tensors["1.n_examples"]) == 7
    assert torch.equal(stored.tensors["random.torch"], torch.get_rng_state())


def test_each_process_has_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(Stopped):
        sweep(Interrupted(batches(), 15), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3.safetensors"]


def augmented() -> Iterator[Tensor]:
    for batch in batches():
        yield batch + random.gauss(0, 1) + numpy.random.normal() + torch.randn(3)


class Augmented:
    def __iter__(self) -> Iterator[Tensor]:
        return augmented()


def shuffled(own: bool) -> DataLoader[Any]:
    source = torch.Generator().manual_seed(4) if own else None
    return DataLoader(
        TensorDataset(X),
        batch_size=2,
        shuffle=True,
        generator=source,
        collate_fn=lambda rows: torch.cat([r[0][None] for r in rows]),
    )


@pytest.mark.parametrize(
    "loader", [Augmented, lambda: shuffled(True), lambda: shuffled(False)], ids=["augmented", "own", "global"]
)
@pytest.mark.parametrize("stop", [5, 17])
def test_loaders_draw_the_same_numbers_again(tmp_path: Path, loader: Callable[[], Any], stop: int) -> None:
    expected = []
    for seed in (1, 2):  # the second run starts from other states than the first
        random.seed(seed), numpy.random.seed(seed), torch.manual_seed(seed)
        if seed == 1:
            expected = sweep(loader(), tmp_path / "whole")
            with pytest.raises(Stopped):
                sweep(Interrupted(loader(), stop), tmp_path / "folder")
        before = random.getstate(), numpy.random.get_state()[2], torch.get_rng_state()
    found = sweep(Interrupted(loader(), 100), tmp_path / "folder")
    assert same(found, expected)
    after = random.getstate(), numpy.random.get_state()[2], torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])


def stopped(folder: Path, *arguments: Any) -> None:
    with pytest.raises(Stopped):
        populate(generator(*arguments), Interrupted(batches(), 5), [Rows(LAYERS)], checkpoint=Checkpoint(folder, 2))


def changed_model(change: Callable[[Dropped], Any]) -> Dropped:
    model = Dropped()
    with torch.no_grad():
        change(model)
    return model


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "parameters": ({"model": changed_model(lambda model: model.weight.mul_(1.0001))}, "the parameters and buffers: "),
    "buffers": ({"model": changed_model(lambda model: model.mean.add_(1))}, "the parameters and buffers: "),
    "likelihood": (
        {"likelihood": ClassifLogits()},
        r"the likelihood \(class\): .*GaussianLikelihood there, .*ClassifLogits here",
    ),
    "covariance": ({"likelihood": GaussianLikelihood(2.0)}, r"the likelihood \(_scale\): nothing there, \w+ here"),
    "kinds": ({"kinds": [Whitened]}, r"the passes: 1 there, 2 here"),
    "more-kinds": ({"kinds": [Rows, Rows]}, r"the representations: nothing there, .*Rows here"),
    "every": ({"every": 3}, "checkpoint_every: 2 there, 3 here"),
    "first-batch": ({"loader": [batch + 1 for batch in batches()]}, "the first batch"),
    "later-batch": ({"loader": [*batches()[:3], X[:3]]}, "the batches: after the first, 4 others"),
    "fewer-batches": (
        {"loader": batches()[:3]},
        "the batches: after the first, 4 others were read there than the 3 here",
    ),
    "no-batches": ({"loader": []}, "the batches: "),
}


@pytest.mark.parametrize(("other", "said"), OTHERS.values(), ids=OTHERS)
def test_another_computation_is_refused_with_what_differs(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    stopped(tmp_path)
    before = (tmp_path / "checkpoint-0.safetensors").read_bytes()
    kinds = [kind(LAYERS) for kind in other.get("kinds", [Rows])]
    own = generator(other.get("likelihood"), other.get("model"))
    with pytest.raises(
        StorageError, match=rf"is of another computation, which differs in {said}.*Give checkpoint= another folder"
    ):
        populate(own, other.get("loader", batches()), kinds, checkpoint=Checkpoint(tmp_path, other.get("every", 2)))
    assert (tmp_path / "checkpoint-0.safetensors").read_bytes() == before


def test_other_layers_are_refused(tmp_path: Path) -> None:
    stopped(tmp_path)
    layers = LayerCollection({"renamed": LinearLayer(3, 1, bias=False)})
    layers = LayerCollection()
    layers.add_layer("renamed", LinearLayer(3, 1, bias=False), ["weight"])
    own = JoiningGenerator(Dropped(), GaussianLikelihood(), layer_collection=layers)
    with pytest.raises(
        StorageError, match="differs in the layers: nothing there|differs in the layers:  there, renamed here"
    ):
        populate(own, batches(), [Rows(layers)], checkpoint=Checkpoint(tmp_path, 2))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path)
    path = Checkpoint(tmp_path).path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="is not a whole safetensors file"):
        populate(generator(), batches(), [Rows(LAYERS)], checkpoint=Checkpoint(tmp_path, 2))


def test_a_finished_sweep_is_gone_over_and_finished_again(tmp_path: Path) -> None:
    sums = [Whitened(LAYERS), Whitened(LAYERS)]
    for one in sums:  # `populate` leaves the file: its caller may be killed before it has made use of the sums
        populate(generator(), batches(), [one], checkpoint=Checkpoint(tmp_path, 4))
    assert same(*[[one.finalize()] for one in sums])


@pytest.mark.parametrize("every", [0, -1, True, 2.0])
def test_the_interval_is_a_number_of_batches(every: Any) -> None:
    with pytest.raises(ValueError, match=f"checkpoint_every is a number of batches, at least 1; got {every}"):
        checkpoint_in("folder", every)
    assert checkpoint_in(None, every) is None
