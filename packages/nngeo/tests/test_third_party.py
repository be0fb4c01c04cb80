"""What a third party adds: a layer type with its rule and a representation, installed or registered in the process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nngeo import (
    FIM,
    Accumulator,
    Call,
    DenseJacobian,
    JacobianBatch,
    KroneckerJacobian,
    KroneckerLayout,
    Layer,
    LayerCollection,
    LayerJacobian,
    LayerRule,
    ParameterLayer,
    PluginError,
    PMat,
    ScaleShiftJacobian,
    UnsupportedOperationError,
    hookimpl,
)
from nngeo_core.plugins import registry
from nngeo_core.testing import (
    MODELS,
    OPTIONAL_OPERATIONS,
    Case,
    PMatContract,
    fisher,
    kronecker_block,
    relative_error,
)

X = torch.randn(6, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Scale(nn.Module):
    """A scale and a shift for each channel, the last axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + self.bias


class ScaleRule(LayerRule):
    name = "scale"
    module_types = (Scale,)

    def describe(self, module: nn.Module) -> Layer:
        return ParameterLayer(tuple((name, tuple(p.shape)) for name, p in module.named_parameters()))

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor, names: tuple[str, ...]
    ) -> LayerJacobian:
        x, g = call.tensor("x", 0), output_gradients
        assert names == ("weight", "bias")
        return ScaleShiftJacobian(x.reshape(len(x), -1, x.shape[-1]), g.reshape(*g.shape[:2], -1, g.shape[-1]), True)


class Quadratic(nn.Module):
    """One output x^T Q x for each example."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.form = nn.Parameter(torch.rand(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ni,ij,nj->n", x, self.form, x).unsqueeze(1)


class QuadraticRule(LayerRule):
    name = "quadratic"
    module_types = (Quadratic,)

    def describe(self, module: nn.Module) -> Layer:
        return ParameterLayer((("form", tuple(module.get_parameter("form").shape)),))

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor, names: tuple[str, ...]
    ) -> LayerJacobian:
        x = call.tensor("x", 0)
        return DenseJacobian(torch.einsum("cn,ni,nj->cnij", output_gradients[..., 0], x, x).flatten(2))


class Squares(nn.Module):
    """y = W x^2 + b at every position."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(outputs, inputs)), nn.Parameter(torch.rand(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x.square() @ self.weight.T + self.bias


class SquaresRule(LayerRule):
    name = "squares"
    module_types = (Squares,)

    def describe(self, module: nn.Module) -> Layer:
        return ParameterLayer(tuple((name, tuple(p.shape)) for name, p in module.named_parameters()))

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor, names: tuple[str, ...]
    ) -> LayerJacobian:
        x, g = call.tensor("x", 0), output_gradients
        layout = KroneckerLayout(groups=1, outputs=g.shape[-1], inputs=x.shape[-1], has_bias=True)
        return KroneckerJacobian(x.square().unsqueeze(2), g.unsqueeze(3), layout)


class TraceSum(Accumulator):
    def accumulate(self, batch: JacobianBatch) -> None:
        for jacobian in batch.layers.values():
            self.add("trace", jacobian.squared_norm())

    def finalize(self) -> Tensor:
        return self.sums["trace"] / self.n_examples


class PMatTrace(PMat):
    """The multiple of the identity that has the trace of F."""

    name = "trace"
    accumulator = TraceSum
    data: Tensor

    def _checked(self, data: Tensor) -> Tensor:
        return data

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def _multiple(self) -> Tensor:
        return self.data / self.layer_collection.numel()

    def _mv(self, v: Tensor) -> Tensor:
        return v * self._multiple

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        return v / (self._multiple + regul)

    def _inverse(self, regul: float) -> "PMatTrace":
        return self._like(self.layer_collection.numel() / (self._multiple + regul))

    def _mm(self, other: "PMatTrace") -> "PMatTrace":
        return self._like(self.data * other._multiple)

    def _add(self, other: "PMatTrace") -> "PMatTrace":
        return self._like(self.data + other.data)

    def _scaled(self, scalar: float | Tensor) -> "PMatTrace":
        return self._like(self.data * scalar, n_examples=self.n_examples)

    def trace(self) -> Tensor:
        return self.data

    def frobenius_norm(self) -> Tensor:
        return self.data.abs() / self.layer_collection.numel() ** 0.5

    def get_diag(self) -> Tensor:
        return self._multiple.expand(self.layer_collection.numel())

    def get_dense_tensor(self) -> Tensor:
        return self.get_diag().diag()


class Plugin:
    @hookimpl
    def nngeo_layer_rules(self) -> list[LayerRule]:
        return [ScaleRule(), QuadraticRule(), SquaresRule()]

    @hookimpl
    def nngeo_representations(self) -> list[type[PMat]]:
        return [PMatTrace]


@pytest.fixture
def registered() -> Iterator[None]:
    plugin = Plugin()
    registry.register(plugin, name="third-party")
    yield
    registry.unregister(plugin)


class _MeanOverPositions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def _scale_net() -> nn.Module:
    """Positions share the scale, and it is called between a linear layer and a head."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), Scale(5), nn.Tanh(), _MeanOverPositions(), Scale(5), nn.Linear(5, 3)]
    return nn.Sequential(*layers).double()


def _quadratic_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Tanh(), Quadratic(3)).double()


def _names(layers: LayerCollection) -> list[str]:
    return [name for names in layers.parameter_names.values() for name in names]


@pytest.mark.parametrize("variant", ["classif_logits", "regression"])
@pytest.mark.parametrize("memory_budget", [None, 1], ids=["at-once", "in-slices"])
def test_a_scale_layer_in_every_linear_representation(
    registered: None, variant: str, memory_budget: int | None
) -> None:
    model = _scale_net()
    dense, diag, trace = FIM(model, X, ["dense", "diag", "trace"], variant=variant, memory_budget=memory_budget)
    expected = fisher(model, X, _names(dense.layer_collection), variant)
    assert relative_error(dense.get_dense_tensor(), expected) <= 1e-12
    assert relative_error(diag.get_diag(), expected.diagonal()) <= 1e-12
    assert relative_error(trace.trace(), expected.trace()) <= 1e-12


def test_a_quadratic_layer_in_every_linear_representation(registered: None) -> None:
    model = _quadratic_net()
    dense, diag, trace = FIM(model, X, ["dense", "diag", "trace"], variant="regression")
    expected = fisher(model, X, _names(dense.layer_collection), "regression")
    assert relative_error(dense.get_dense_tensor(), expected) <= 1e-12
    assert relative_error(diag.get_diag(), expected.diagonal()) <= 1e-12
    assert relative_error(trace.trace(), expected.trace()) <= 1e-12


@pytest.mark.parametrize("memory_budget", [None, 1], ids=["at-once", "in-slices"])
def test_kfac_of_a_rule_with_kronecker_structure_is_the_formula(registered: None, memory_budget: int | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Squares(4, 2), nn.Tanh(), _MeanOverPositions()).double()
    dense, kfac = FIM(model, X, ["dense", "kfac"], variant="regression", memory_budget=memory_budget)
    n, s, _ = X.shape
    a = torch.cat((X.square(), torch.ones(n, s, 1, dtype=X.dtype)), 2).flatten(0, 1)  # the bias's input is 1
    slopes = (1 - model[0](X).detach().tanh().square()).flatten(0, 1) / s  # output o depends on unit o alone
    inputs, outputs = a.T @ a / n, (slopes.T @ slopes).diagonal().diag() / (n * s)
    expected = kronecker_block(inputs[None], outputs[None], has_bias=True)
    assert relative_error(kfac.get_dense_tensor(), expected) <= 1e-12
    exact = fisher(model, X, _names(dense.layer_collection), "regression")
    assert relative_error(dense.get_dense_tensor(), exact) <= 1e-12


@pytest.mark.parametrize(
    ("build", "layer", "kind"),
    [(_scale_net, "1", "ScaleShiftJacobian"), (_quadratic_net, "3", "DenseJacobian")],
    ids=["scale", "quadratic"],
)
def test_kfac_names_the_layer_without_kronecker_structure(
    registered: None, build: object, layer: str, kind: str
) -> None:
    model = build()  # type: ignore[operator]
    with pytest.raises(
        UnsupportedOperationError,
        match=rf"layer '{layer}': {kind} is not a sum of Kronecker.*; use the",
    ):
        FIM(model, X, "kfac", variant="regression")


@pytest.mark.usefixtures("registered")
class TestPMatTrace(PMatContract):
    representation = PMatTrace
    unsupported = OPTIONAL_OPERATIONS

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        exact = super().dense_value(case, layers, variant)
        return exact.trace() / len(exact) * torch.eye(len(exact), dtype=exact.dtype)

    def test_it_is_found_by_its_name(self) -> None:
        case = MODELS["conv"]()
        assert type(FIM(case.model, case.inputs, "trace")) is PMatTrace


def test_without_the_plugin_the_layer_goes_the_generic_way_and_the_name_is_unknown() -> None:
    model = _scale_net()
    matrix = FIM(model, X, "dense", variant="regression")
    names = [name for name, _ in matrix.layer_collection.named_parameters(model)]
    assert relative_error(matrix.get_dense_tensor(), fisher(model, X, names, "regression")) < 1e-10
    assert "generic" in str(matrix.layer_collection)
    with pytest.raises(PluginError, match="unknown pmat representation 'trace'; known: 'blockdiag', 'dense'"):
        FIM(nn.Linear(4, 3), X[:, 0], "trace")


def test_an_installed_distribution_is_found_by_its_entry_point(tmp_path: Path) -> None:
    metadata = tmp_path / "nngeo_stripes-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: nngeo-stripes\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[nngeo]\nstripes = stripes_plugin\n")
    (tmp_path / "third_party.py").write_text(Path(__file__).read_text())
    (tmp_path / "stripes_plugin.py").write_text(
        "from third_party import Plugin\n"
        "plugin = Plugin()\n"
        "nngeo_layer_rules, nngeo_representations = plugin.nngeo_layer_rules, plugin.nngeo_representations\n"
    )
    code = """
import third_party
from nngeo import FIM
dense, trace = FIM(third_party._scale_net(), third_party.X, ["dense", "trace"])
print(float(dense.trace()), float(trace.trace()))
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    of_dense, of_trace = map(float, found.stdout.split())
    assert of_dense == pytest.approx(of_trace, rel=1e-12)
    plugins = subprocess.run(
        [sys.executable, "-m", "nngeo", "plugins"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nngeo-stripes" in plugins.stdout
