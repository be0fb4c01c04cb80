"""The plan: which module contributes what to which layer."""

from collections.abc import Callable

import pytest
from torch import nn

from nngeo_core import LayerCollection, LinearLayer, ParameterLayer, UnsupportedLayerError
from nngeo_core.plugins import registry
from nngeo_core.testing import MODELS
from nngeo_generators.plan import make_plan

Build = Callable[..., nn.Module]


def summary(model: nn.Module, layers: LayerCollection | None = None) -> list[tuple[str, str, tuple[str, ...]]]:
    plan = make_plan(model, LayerCollection.from_model(model) if layers is None else layers)
    return [(use.path, use.layer_id, use.names) for use in plan]


def test_every_module_contributes_its_parameters_to_its_layer() -> None:
    model = MODELS["mlp"]().model
    both = ("weight", "bias")
    assert summary(model) == [("0", "0", both), ("2", "2", both)]
    first = make_plan(model, LayerCollection.from_model(model))[0]
    assert (first.places, first.layer_numel, first.rule.name) == ((slice(0, 20), slice(20, 24)), 24, "linear")


def test_a_module_outside_the_collection_is_not_listened_to() -> None:
    model, layers = MODELS["mlp"]().model, LayerCollection()
    layers.add_layer_from_model(model, model[2])
    assert summary(model, layers) == [("2", "2", ("weight", "bias"))]


def test_a_tied_weight_has_two_sources() -> None:
    assert summary(MODELS["tied-weight"]().model) == [
        ("0", "0", ("weight",)),
        ("2", "0", ("weight",)),
        ("4", "4", ("weight", "bias")),
    ]


def test_own_biases_of_a_tied_weight_are_layers_of_their_own() -> None:
    assert summary(MODELS["tied-weight-own-bias"]().model)[:4] == [
        ("0", "0.weight", ("weight",)),
        ("0", "0.bias", ("bias",)),
        ("2", "0.weight", ("weight",)),
        ("2", "2", ("bias",)),
    ]


def test_a_module_used_in_two_places_is_listened_to_once() -> None:
    shared = nn.Linear(3, 3)
    assert summary(nn.Sequential(shared, nn.Tanh(), shared)) == [("0", "0", ("weight", "bias"))]


def test_a_layer_may_hold_the_bias_alone() -> None:
    model, layers = nn.Sequential(nn.Linear(2, 3)), LayerCollection()
    layers.add_layer("b", ParameterLayer((("bias", (3,)),)), ["0.bias"])
    assert summary(model, layers) == [("0", "b", ("bias",))]


def test_parameters_in_another_order_than_the_rules_are_refused() -> None:
    model, layers = nn.Sequential(nn.Linear(2, 3)), LayerCollection()
    layers.add_layer("0", ParameterLayer((("bias", (3,)), ("weight", (3, 2)))), ["0.bias", "0.weight"])
    with pytest.raises(UnsupportedLayerError) as error:
        make_plan(model, layers)
    assert str(error.value) == (
        "layer '0' lists the parameters of '0' as ['bias', 'weight'], its rule as ['weight', 'bias']; "
        "build the layer collection with LayerCollection.from_model"
    )


class Scale(nn.Module):
    """A module that no table knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(2, 3).weight.detach())


def test_a_module_of_the_users_goes_the_generic_way(build: Build) -> None:
    model = build(lambda net, x: x, scale=Scale())
    assert summary(model) == [("scale", "scale", ("weight",))]
    (use,) = make_plan(model, LayerCollection.from_model(model))
    assert (use.rule.name, use.places, use.layer_numel) == ("generic", (slice(0, 6),), 6)


def test_a_module_without_a_rule_is_refused_by_name(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the plugin that has the generic way is disabled."""
    model, layers = build(lambda net, x: x, scale=Scale()), LayerCollection()
    layers.add_layer("scale", LinearLayer(2, 3, bias=False), ["scale.weight"])
    monkeypatch.setattr(registry, "resolve_rule", lambda module: None)
    with pytest.raises(UnsupportedLayerError) as error:
        make_plan(model, layers)
    assert str(error.value) == (
        "'scale' (Scale) uses ['scale.weight'] and has no layer rule; leave these parameters out of the layer "
        "collection, or install a plugin with a rule."
    )
