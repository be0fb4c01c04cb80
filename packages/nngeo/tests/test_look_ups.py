"""Look-up costs nothing where it matters: not on import, not while data flows, not for rules that are known already."""

import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from nngeo import FIM, LayerCollection
from nngeo_core.plugins import registry
from nngeo_core.plugins.registry import Registry
from nngeo_core.testing import fisher, relative_error

X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def look_ups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[object]]:
    """Counts the types and modules that the registry is asked about."""
    asked: Counter[object] = Counter()
    rule, resolve = Registry.rule, Registry.resolve_rule

    def counted_rule(self: Registry, module_type: type[nn.Module]) -> object:
        asked[module_type] += 1
        return rule(self, module_type)

    def counted_resolve(self: Registry, module: nn.Module) -> object:
        asked[type(module)] += 1
        return resolve(self, module)

    monkeypatch.setattr(Registry, "rule", counted_rule)
    monkeypatch.setattr(Registry, "resolve_rule", counted_resolve)
    yield asked


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)).double()


def exact(model: nn.Module, layers: LayerCollection) -> Tensor:
    return fisher(model, X, [name for name, _ in layers.named_parameters(model)], "classif_logits")


def test_importing_everything_loads_no_plugin() -> None:
    code = """
import sys
import nngeo
from nngeo_core.plugins import registry
print(registry._roster, "nngeo_generators.plugin" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["None", "False"]


def test_no_layer_is_looked_up_for_a_collection_that_holds_its_rule(look_ups: Counter[object]) -> None:
    model = network()
    layers = LayerCollection.from_model(model)
    assert look_ups[nn.Linear] == 2
    assert set(layers.rules) == {"0", "2", "3"}
    assert nn.Tanh not in look_ups  # it has no parameters
    look_ups.clear()
    F = FIM(model, X, "dense", layer_collection=layers)
    assert nn.Linear not in look_ups and nn.LayerNorm not in look_ups
    assert relative_error(F.get_dense_tensor(), exact(model, layers)) <= 1e-10


def test_nothing_is_looked_up_while_data_flows(look_ups: Counter[object]) -> None:
    F = FIM(network(), X, "dense")
    look_ups.clear()
    assert sum(batch.n_examples for batch in F.generator.stream([X] * 3) if batch.first_slice) == 18
    assert look_ups == Counter()


def test_a_module_that_was_changed_since_is_looked_up_anew() -> None:
    model = network()
    layers = LayerCollection.from_model(model)
    model[3].forward = lambda x: nn.functional.linear(2 * x, model[3].weight, model[3].bias)  # type: ignore[method-assign]
    F = FIM(model, X, "dense", layer_collection=layers, check="off")
    assert relative_error(F.get_dense_tensor(), exact(model, layers)) <= 1e-10
    model = network()
    layers = LayerCollection.from_model(weight_norm(model[0]))
    assert layers.rules[""] is not registry.rule(nn.Linear)


def test_a_rule_held_for_another_model_of_these_names_is_not_used() -> None:
    layers = LayerCollection.from_model(nn.Sequential(nn.Linear(3, 2)).double())
    model = nn.Sequential(Doubled(3, 2)).double()
    F = FIM(model, X, "dense", layer_collection=layers, check="off")
    assert relative_error(F.get_dense_tensor(), exact(model, layers)) <= 1e-10


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_rules_do_not_travel() -> None:
    layers = LayerCollection.from_model(network())
    arrived = pickle.loads(pickle.dumps(layers))
    assert arrived == layers
    assert (len(layers.rules), arrived.rules) == (3, {})
    assert LayerCollection(layers).rules == layers.rules
