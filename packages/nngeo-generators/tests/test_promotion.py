"""Promotion: from a layer's rule to its module, to the modules around it, to the function of the outputs."""

from collections.abc import Callable

import pytest
from torch import nn

from nngeo_core import LayerCollection, UnsupportedLayerError
from nngeo_generators.network import Network
from nngeo_generators.plan import Use, make_plan
from nngeo_generators.promotion import promote

Plan = tuple[Use, ...]


def steps(model: nn.Module, layer_id: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Where a layer is read at each step up: (path, rule, names), until it is refused."""
    layers, network = LayerCollection.from_model(model), Network(model, model)
    plan: Plan = make_plan(model, layers)
    others = [use for use in plan if use.layer_id != layer_id]
    found = []
    while True:
        try:
            plan = promote(plan, layer_id, "it differs", network, layers)
        except UnsupportedLayerError as error:
            assert str(error) == (
                f"layer '{layer_id}' has no exact derivative here, not even from the whole model on single examples: "
                "it differs. Mend the model, or leave this layer out of the layer collection"
            )
            return found
        assert [use for use in plan if use.layer_id != layer_id] == others
        (use,) = (use for use in plan if use.layer_id == layer_id)
        assert use.module is (network if use.names[0].startswith("model.") else model.get_submodule(use.path))
        assert [use.module.get_parameter(name) for name in use.names] == [
            model.get_parameter(name) for name in layers.parameter_names[layer_id]
        ]
        found.append((use.path, use.rule.name, use.names))


def nested() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)), nn.Linear(2, 2))


def test_module_then_parents_then_the_function_of_the_outputs() -> None:
    assert steps(nested(), "0.0.0") == [
        ("0.0.0", "generic", ("weight", "bias")),
        ("0.0", "generic", ("0.weight", "0.bias")),
        ("0", "generic", ("0.0.weight", "0.0.bias")),
        ("", "generic", ("model.0.0.0.weight", "model.0.0.0.bias")),
    ]


def test_a_module_that_is_the_model() -> None:
    assert steps(nn.Linear(2, 2), "") == [
        ("", "generic", ("weight", "bias")),
        ("", "generic", ("model.weight", "model.bias")),
    ]


def test_a_layer_without_structure_starts_at_the_parent() -> None:
    assert [path for path, _, _ in steps(nn.Sequential(nn.Sequential(nn.PReLU())), "0.0")] == ["0", ""]


@pytest.mark.parametrize(
    ("tie", "paths"),
    [(lambda net: (net[0][0][0], net[0][1]), ["0", ""]), (lambda net: (net[0][1], net[1]), [""])],
    ids=["inside", "across"],
)
def test_tied_parameters_are_taken_up_by_what_is_around_all_their_uses(
    tie: Callable[[nn.Module], tuple[nn.Linear, nn.Linear]], paths: list[str]
) -> None:
    net = nested()
    first, second = tie(net)
    second.weight, second.bias = first.weight, first.bias
    layer_id = next(path for path, module in net.named_modules() if module is first)
    assert [path for path, _, _ in steps(net, layer_id)] == paths


def test_a_use_around_another_is_not_their_parent() -> None:
    """A module and one inside it share a parameter."""
    outer = nn.Sequential(nn.Linear(2, 2, bias=False))
    outer.shared = outer[0].weight
    assert [path for path, _, _ in steps(nn.Sequential(nn.Sequential(outer)), "0.0")] == ["0", ""]
