"""Data as it comes: loaders of every kind, batches of every kind, models that return objects."""

from collections import UserDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.tokenization_utils_base import BatchEncoding

from nngeo import FIM, Accumulator, EmpiricalFIM, JacobianBatch, PMatDiag
from nngeo_core.testing import relative_error

X = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10) % 4


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)).double()


MODEL = net()
EXPECTED = FIM(MODEL, X, "dense").get_dense_tensor()


class Stream(IterableDataset[Tensor]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


def one_shot() -> Iterator[Any]:
    yield from X.split(4)


DATASET: Any = TensorDataset(X, Y)
LOADERS: dict[str, Any] = {
    "last batch smaller": DataLoader(DATASET, batch_size=4),
    "shuffled": DataLoader(DATASET, batch_size=3, shuffle=True),
    "without a length": DataLoader(Stream(), batch_size=4),
    "lists": [[X[:5], Y[:5]], [X[5:], Y[5:]]],
    "nested": [(X[:5], (Y[:5], {"weight": Y[:5]})), (X[5:], (Y[5:], {"weight": Y[5:]}))],
    "an empty batch among them": [X[:3], X[:0], X[3:]],
    "a pair": (X, Y),
    "not contiguous": X.T.contiguous().T,
}


@pytest.mark.parametrize("name", list(LOADERS))
def test_loaders(name: str) -> None:
    dense = FIM(MODEL, LOADERS[name], "dense")
    assert dense.n_examples == 10
    assert relative_error(dense.get_dense_tensor(), EXPECTED) <= 1e-12


def test_the_examples_seen_are_counted() -> None:
    """With drop_last the data set has a length of 10, and 8 examples come."""
    dense = FIM(MODEL, DataLoader(DATASET, batch_size=4, drop_last=True), "dense")
    assert dense.n_examples == 8
    assert relative_error(dense.get_dense_tensor(), FIM(MODEL, X[:8], "dense").get_dense_tensor()) <= 1e-12
    sampled = DataLoader(DATASET, batch_size=4, sampler=[0, 1, 1, 5])
    assert FIM(MODEL, sampled, "dense").n_examples == 4


class TwoPasses(Accumulator):
    passes = 2

    def accumulate(self, batch: JacobianBatch) -> None:
        self.add("squares", torch.cat([jacobian.sum_of_squares() for jacobian in batch.layers.values()]))

    def finalize(self) -> Tensor:
        return self.average("squares") / 2


class PMatTwoPasses(PMatDiag):
    accumulator = TwoPasses


def test_an_iterator_serves_one_pass_and_is_refused_for_two() -> None:
    assert relative_error(FIM(MODEL, one_shot(), "dense").get_dense_tensor(), EXPECTED) <= 1e-12
    left = one_shot()
    with pytest.raises(ValueError, match="2 passes over the data are needed and generator can be read only once"):
        FIM(MODEL, left, ["dense", PMatTwoPasses])
    assert len(next(left)) == 4, "nothing of it was read"
    dense, twice = FIM(MODEL, LOADERS["shuffled"], ["dense", PMatTwoPasses])
    assert relative_error(twice.get_diag(), dense.get_diag()) <= 1e-12
    with pytest.raises(ValueError, match="no examples"):
        FIM(MODEL, iter([]), "dense")


@dataclass
class Returned:
    logits: Tensor
    hidden: Tensor


class Wrapped(nn.Module):
    """Takes keyword arguments, returns an object."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.model = net()
        self.kind = kind

    def forward(self, inputs: Tensor, scale: Tensor | None = None, labels: Tensor | None = None) -> Any:
        assert labels is None, "the labels are not for the model"
        logits = self.model(inputs if scale is None else inputs * scale[:, None])
        if self.kind == "dataclass":
            return Returned(logits, logits)
        return {"logits": logits, "loss": None} if self.kind == "dict" else SequenceClassifierOutput(logits=logits)


BATCHES: dict[str, Any] = {
    "dict": {"inputs": X, "labels": Y},
    "BatchEncoding": BatchEncoding({"inputs": X, "labels": Y, "scale": torch.ones(10)}),
    "UserDict": UserDict({"inputs": X}),
    "loader of BatchEncodings": [
        BatchEncoding({"inputs": X[some], "labels": Y[some]}) for some in (slice(0, 4), slice(4, 10))
    ],
}


@pytest.mark.parametrize("kind", ["dataclass", "dict", "ModelOutput"])
@pytest.mark.parametrize("name", list(BATCHES))
def test_mappings_in_and_objects_with_logits_out(name: str, kind: str) -> None:
    model = Wrapped(kind)
    dense = FIM(model, BATCHES[name], "dense")
    assert dense.n_examples == 10
    assert relative_error(dense.get_dense_tensor(), EXPECTED) <= 1e-12
    v = torch.ones(len(EXPECTED), dtype=torch.float64)
    product = dense.generator.product(dense._vector(v), BATCHES[name]).get_flat_representation()
    assert relative_error(product, EXPECTED @ v) <= 1e-10
    if "UserDict" not in name:
        empirical = EmpiricalFIM(model, BATCHES[name], "dense", variant="classif_logits")
        expected = EmpiricalFIM(MODEL, (X, Y), "dense", variant="classif_logits")
        assert relative_error(empirical.get_dense_tensor(), expected.get_dense_tensor()) <= 1e-12


def test_a_function_serves_for_anything_else() -> None:
    batches = [{"graph": (X[some], "name"), "n": Y[some]} for some in (slice(0, 3), slice(3, 10))]
    dense = FIM(MODEL, batches, "dense", function=lambda batch: MODEL(batch["graph"][0]))
    assert relative_error(dense.get_dense_tensor(), EXPECTED) <= 1e-12
    with pytest.raises(TypeError, match="returned tuple, expected one tensor or an object with `logits`"):
        FIM(MODEL, X, "dense", function=lambda x: (MODEL(x), x))


def test_progress_shows_the_pass_and_the_examples_per_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COLUMNS", "LINES"):  # older bars are cut to the width of the terminal
        monkeypatch.setenv(name, "200")
    FIM(MODEL, X.split(4), ["dense", PMatTwoPasses], progress=True)
    shown = capsys.readouterr().err
    for part in ("PMatDense, PMatTwoPasses: pass 1/2", "pass 2/2", "examples/s", "3/3"):
        assert part in shown
    FIM(MODEL, X, "dense")
    assert capsys.readouterr().err == ""
