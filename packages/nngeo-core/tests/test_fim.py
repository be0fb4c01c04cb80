"""FIM: from a model and a loader to matrices, with a generator, a representation and a likelihood from a plugin."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import (
    FIM,
    Accumulator,
    ClassifLogits,
    DenseJacobian,
    GaussianLikelihood,
    Generator,
    JacobianBatch,
    LayerCollection,
    LinearLayer,
    PluginError,
    PMat,
)
from nngeo_core.plugins import Registry, hookimpl
from nngeo_core.plugins import registry as installed
from nngeo_core.testing import fisher, relative_error

LAYERS = LayerCollection({"0": LinearLayer(2, 3, bias=False)})


class Analytic(Generator):
    """The Jacobian of `nn.Sequential(nn.Linear(2, 3, bias=False))`, by hand."""

    name = "hooks"
    sweeps = 0

    def _jacobian(self, batch: Any, directions: slice | None) -> JacobianBatch:
        outputs = self.outputs(batch, len(batch))
        chosen = directions or slice(0, self.likelihood.n_directions(outputs))
        g = self.likelihood.directions(outputs, None, chosen)
        rows = torch.einsum("kno,ni->knoi", g, batch).flatten(2)
        return JacobianBatch({"0": DenseJacobian(rows)}, len(batch), chosen, 3, batch.dtype, batch.device)

    def stream(self, batches: Iterable[Any]) -> Iterator[JacobianBatch]:
        type(self).sweeps += 1
        for batch in batches:
            yield self._jacobian(batch, None)

    def _jvp(self, v: Tensor, batches: Iterable[Any]) -> Tensor:
        raise NotImplementedError

    def _vjp(self, u: Tensor, batches: Iterable[Any]) -> Tensor:
        raise NotImplementedError

    def _product(self, v: Tensor, batches: Iterable[Any]) -> Tensor:
        raise NotImplementedError


class TraceSum(Accumulator):
    def accumulate(self, batch: JacobianBatch) -> None:
        self.add("trace", batch.layers["0"].squared_norm())

    def finalize(self) -> Tensor:
        return self.sums["trace"] / self.n_examples


class PMatTrace(PMat):
    """Stores nothing but the trace, which is all that these tests ask for."""

    name = "trace"
    accumulator: type[Accumulator] = TraceSum

    def _checked(self, data: Any) -> Any:
        return data

    def trace(self) -> Tensor:
        found: Tensor = self.data
        return found

    def _refuse(self, *arguments: object) -> Any:
        self._unsupported("anything but the trace", "use trace")

    dtype = device = property(_refuse)  # type: ignore[assignment]
    _mv = _solve = _inverse = _mm = _add = _scaled = frobenius_norm = get_diag = get_dense_tensor = _refuse


class TwoPassSum(TraceSum):
    passes = 2

    def begin_pass(self, number: int) -> None:
        super().begin_pass(number)
        self.sums.clear()


class PMatTwoPasses(PMatTrace):
    name = "two-passes"
    accumulator = TwoPassSum


class Halved(GaussianLikelihood):
    name = "halved"

    def directions(self, outputs: Tensor, targets: Tensor | None, chosen: slice) -> Tensor:
        return super().directions(outputs, targets, chosen) / 2


class Plugin:
    @hookimpl
    def nngeo_generators(self) -> Any:
        return [Analytic]

    @hookimpl
    def nngeo_representations(self) -> Any:
        return [PMatTrace, PMatTwoPasses]

    @hookimpl
    def nngeo_likelihoods(self) -> Any:
        return [ClassifLogits, GaussianLikelihood, Halved]


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry that knows the plugin above and nothing else, as FIM sees it."""
    installed.names("rules")  # loaded now, while its plugins can be seen
    monkeypatch.setattr("nngeo_core.plugins.roster.installed", list)
    fresh = Registry()
    fresh.register(Plugin())
    for module in ("nngeo_core.verbs.fim", "nngeo_core.matrices.choice", "nngeo_core.likelihoods.choice"):
        monkeypatch.setattr(f"{module}.registry", fresh)
    monkeypatch.setattr(Analytic, "sweeps", 0)
    return fresh


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3, bias=False)).double()


X = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]], dtype=torch.float64)


def _fim(model: nn.Module, representation: Any = "trace", loader: Any = X, **options: Any) -> Any:
    return FIM(model, loader, representation, layer_collection=LAYERS, **options)


@pytest.mark.parametrize("variant", ["classif_logits", "regression"])
@pytest.mark.parametrize("representation", ["trace", PMatTrace], ids=["name", "class"])
def test_one_matrix(model: nn.Module, representation: Any, variant: str) -> None:
    matrix = _fim(model, representation, variant=variant)
    assert type(matrix) is PMatTrace
    assert relative_error(matrix.trace(), fisher(model, X, ["0.weight"], variant).trace()) <= 1e-12
    assert (matrix.n_examples, matrix.layer_collection is LAYERS) == (3, True)


def test_the_default_likelihood_is_classif_logits(model: nn.Module) -> None:
    assert relative_error(_fim(model).trace(), _fim(model, variant=ClassifLogits()).trace()) == 0


def test_likelihoods_by_registered_name_and_as_objects(model: nn.Module) -> None:
    whole = _fim(model, variant="regression").trace()
    assert relative_error(_fim(model, variant="halved").trace(), whole / 4) <= 1e-14
    assert relative_error(_fim(model, variant=Halved()).trace(), whole / 4) <= 1e-14


@pytest.mark.parametrize("container", [list, tuple])
def test_several_matrices_take_one_sweep(model: nn.Module, container: Any) -> None:
    matrices = _fim(model, container(["trace", PMatTrace, "trace"]))
    assert isinstance(matrices, list)
    assert len(matrices) == 3
    assert Analytic.sweeps == 1
    assert len({float(matrix.trace()) for matrix in matrices}) == 1


def test_as_many_passes_as_the_neediest_asks(model: nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    once, twice = _fim(model, ["trace", "two-passes"], progress=True)
    assert Analytic.sweeps == 2
    assert relative_error(twice.trace(), once.trace()) == 0
    assert (once.n_examples, twice.n_examples) == (3, 3)
    shown = capfd.readouterr().err
    assert "1/2" in shown
    assert "2/2" in shown


def test_a_list_of_one_is_a_list(model: nn.Module) -> None:
    (matrix,) = _fim(model, ["trace"])
    assert type(matrix) is PMatTrace


def test_a_function_gives_the_outputs(model: nn.Module) -> None:
    doubled = _fim(model, variant="regression", function=lambda batch: model(batch) * 2)
    assert (
        relative_error(doubled.trace(), _fim(model, variant="regression").trace()) <= 1e-14
    )  # this generator reads W x


def test_unknown_names_list_the_known_ones(model: nn.Module) -> None:
    with pytest.raises(
        PluginError, match="unknown pmat representation 'traces'; known: 'trace', 'two-passes'.*'trace'?"
    ):
        _fim(model, "traces")
    with pytest.raises(
        PluginError, match="unknown likelihood 'logits'; known: 'classif_logits', 'halved', 'regression'"
    ):
        _fim(model, variant="logits")


def test_an_empty_list_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="empty list; give at least one name or class"):
        _fim(model, [])


@pytest.mark.parametrize("wrong", [3, None, nn.Linear, PMat, PMatTrace.trace, [3], {"trace"}])
def test_what_is_no_representation_is_refused(model: nn.Module, wrong: object) -> None:
    with pytest.raises(
        TypeError,
        match=r"a name, a concrete PMat class, a mapping .*, or a list of those; got .* Known names: auto, trace, two-passes",
    ):
        _fim(model, wrong)


@pytest.mark.parametrize("wrong", [3, None, ClassifLogits], ids=repr)
def test_what_is_no_likelihood_is_refused(model: nn.Module, wrong: object) -> None:
    with pytest.raises(
        TypeError, match=r"Likelihood object or a registered name \(classif_logits, halved, regression\), got"
    ):
        _fim(model, variant=wrong)


def test_options_are_checked(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="n_output=4 was given, and the model returns 3 outputs"):
        _fim(model, n_output=4)
    assert _fim(model, n_output=3).n_examples == 3
    with pytest.raises(ValueError, match="memory_budget is a positive number of bytes, got 0"):
        _fim(model, memory_budget=0)
    with pytest.raises(ValueError, match="check is one of .*, got 'never'"):
        _fim(model, check="never")
    with pytest.raises(ValueError, match=r"device='meta' was given and the model is on 'cpu'; call model.to\(device\)"):
        _fim(model, device="meta")
    with pytest.raises(ValueError, match="no examples"):
        _fim(model, loader=iter([]))


def test_a_missing_generator_says_what_to_install(registry: Registry, model: nn.Module) -> None:
    registry.unregister("Plugin")
    with pytest.raises(PluginError, match="unknown pmat representation 'trace'; known: none"):
        _fim(model)
    with pytest.raises(PluginError, match="unknown generator 'hooks'; known: none"):
        _fim(model, PMatTrace, variant=GaussianLikelihood())
