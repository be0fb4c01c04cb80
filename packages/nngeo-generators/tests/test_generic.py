"""The generic rule: what it covers, and a dense Jacobian of exactly the parameters asked for."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from nngeo_core import Call, DenseJacobian, LayerCollection
from nngeo_core.layers.sources import find_rule
from nngeo_core.testing import output_jacobian, relative_error
from nngeo_generators.rules.generic import GenericRule, generic_rule

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3).sin()


class Affine(nn.Module):
    """Parameters of its own, and a child with others."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(3, 3)
        self.scale, self.shift = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.child(x).tanh() + self.shift


@pytest.mark.parametrize(("module", "subtree"), [
    (Affine(), False), (nn.LSTM(3, 2), False), (parametrizations.weight_norm(nn.Linear(3, 2)), True),
])  # fmt: skip
def test_children_belong_to_it_where_they_are_used_without_a_call(module: nn.Module, subtree: bool) -> None:
    rule = generic_rule(module)
    assert (rule.name, rule.structured, rule.claims_subtree) == ("generic", False, subtree)


def test_a_module_of_the_users_finds_it() -> None:
    assert isinstance(find_rule(Affine()), GenericRule)
    assert {layer: LayerCollection.from_model(Affine()).parameter_names[layer] for layer in ("", "child")} == {
        "": ("scale", "shift"),
        "child": ("child.weight", "child.bias"),
    }


def test_it_describes_the_parameters_of_the_module_or_of_all_that_is_inside() -> None:
    assert dict(GenericRule(subtree=False).describe(Affine()).parameter_shapes()) == {"scale": (3,), "shift": ()}
    assert list(GenericRule(subtree=True).describe(Affine()).parameter_shapes()) == [
        "scale", "shift", "child.weight", "child.bias",
    ]  # fmt: skip


@pytest.mark.parametrize("names", [("scale", "shift"), ("shift",), ("child.bias", "scale")], ids=str)
def test_the_jacobian_of_the_names_in_their_order(names: tuple[str, ...]) -> None:
    module = Affine().double()
    identity = torch.eye(3, dtype=torch.float64)[:, None].expand(-1, 4, -1)
    found = GenericRule(subtree=True).jacobian(module, Call((X,), {}, "", 4), identity, names)
    assert isinstance(found, DenseJacobian)
    assert relative_error(found.to_dense(), output_jacobian(module, X, names)) < 1e-14


def test_ignored_like_any_layer_without_structure() -> None:
    model = nn.Sequential(Affine(), nn.Linear(3, 2))
    layers = LayerCollection.from_model(model, ignore_unsupported_layers=True)
    assert layers.ignored == (("0", "Affine", ("0.scale", "0.shift")),) and list(layers) == ["0.child", "1"]
