"""The rule of GPT-2's linear layer."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from nngeo_core.layers.sources import find_rule
from nngeo_core.testing import RuleCase, RuleContract
from nngeo_core.testing.jacobian_contract import agree
from nngeo_core.testing.oracles import fisher, relative_error
from nngeo_generators.rules.transformers_conv1d import TransformersConv1DRule


class Conv1D(nn.Module):
    """Built like the class of that name in transformers."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf, generator=torch.Generator().manual_seed(0)))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class TestTransformersConv1DRule(RuleContract):
    rule = TransformersConv1DRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        return {
            "vectors": lambda: RuleCase(Conv1D(4, 3).double(), numbers(5, 3)),
            "sequence": lambda: RuleCase(Conv1D(4, 3).double(), numbers(5, 4, 3)),
            "as-wide-as-long": lambda: RuleCase(Conv1D(3, 3).double(), numbers(3, 3, 3)),
            "one-input": lambda: RuleCase(Conv1D(4, 1).double(), numbers(5, 1)),
            "one-output": lambda: RuleCase(Conv1D(1, 3).double(), numbers(5, 2, 3)),
        }


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 3), max_size=2), st.integers(1, 4), st.integers(1, 4))
def test_any_geometry_equals_autograd(positions: list[int], inputs: int, outputs: int) -> None:
    case = RuleCase(Conv1D(outputs, inputs).double(), numbers(3, *positions, inputs))
    g, names = numbers(2, 3, *positions, outputs), ("weight", "bias")
    found = TransformersConv1DRule().jacobian(case.module, case.call, g, names)
    agree(found.to_dense(), case.autograd(g, names), "to_dense")


def test_factors_are_those_of_a_linear_layer() -> None:
    x, g = numbers(5, 4, 3), numbers(2, 5, 4, 2)
    case = RuleCase(Conv1D(2, 3).double(), x)
    factors = TransformersConv1DRule().jacobian(case.module, case.call, g, ("weight", "bias")).kronecker_factors()
    ones = torch.cat((x, torch.ones_like(x[..., :1])), 2)
    assert relative_error(factors.inputs[0], torch.einsum("nsa,nsb->ab", ones, ones)) <= 1e-14
    assert relative_error(factors.outputs[0], torch.einsum("cnsg,cnsh->gh", g, g) / 4) <= 1e-14


def test_the_module_of_transformers() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    case, g, names = RuleCase(conv1d(4, 3).double(), numbers(5, 2, 3)), numbers(2, 5, 2, 4), ("weight", "bias")
    rule = find_rule(case.module)
    assert isinstance(rule, TransformersConv1DRule)
    agree(rule.jacobian(case.module, case.call, g, names).to_dense(), case.autograd(g, names), "to_dense")


class Renamed(Conv1D):
    pass


def _with(**attributes: Any) -> nn.Module:
    module = Conv1D(4, 3)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize(
    "build",
    [
        lambda: Renamed(4, 3),
        lambda: _with(nf=5),
        lambda: _with(bias=None),
        lambda: _with(weight=nn.Parameter(torch.ones(4, 3))),
        lambda: _with(child=nn.Linear(1, 1)),
        lambda: _with(forward=lambda x: x),
        lambda: parametrizations.weight_norm(Conv1D(4, 3)),
        lambda: nn.Linear(3, 3),
    ],
    ids=["name", "nf", "no-bias", "outputs-first", "child", "patched", "parametrized", "linear"],
)
def test_what_is_not_recognised(build: Callable[[], nn.Module]) -> None:
    assert not TransformersConv1DRule().recognizes(build())


def test_fisher_of_a_small_model(dense_fisher: Callable[..., Tensor]) -> None:
    model = nn.Sequential(Conv1D(4, 3), nn.ReLU(inplace=True), Conv1D(2, 4), nn.Flatten(), nn.Linear(4, 3)).double()
    x = numbers(5, 2, 3)
    expected = fisher(model, x, [name for name, _ in model.named_parameters()], "classif_logits")
    assert relative_error(dense_fisher(model, x, "classif_logits"), expected) <= 1e-10
