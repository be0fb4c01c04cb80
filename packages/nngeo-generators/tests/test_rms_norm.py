"""The rules of root-mean-square normalisation: torch's, and those of modules that look like it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from nngeo_core import Call, UnsupportedLayerError
from nngeo_core.layers.sources import find_rule
from nngeo_core.testing import RuleCase, RuleContract
from nngeo_core.testing.jacobian_contract import agree
from nngeo_core.testing.oracles import fisher, relative_error
from nngeo_generators.rules.rms_norm import RMSNormLikeRule, RMSNormRule


class RMSNormLike(nn.Module):
    """The parameters that such modules have, away from their initial values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 2, width))
        self.variance_epsilon = 1e-3

    def normalized(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


class DoubleRMSNorm(RMSNormLike):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * self.normalized(hidden_states)


class SingleRMSNorm(RMSNormLike):
    """In float32, whatever the input, as Llama's."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * self.normalized(hidden_states.to(torch.float32)).to(hidden_states.dtype)


class OwnT5LayerNorm(RMSNormLike):
    """The variance alone in float32."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


class OnePlusRMSNorm(RMSNormLike):
    """With one added to its weight, all in float32, as Gemma's."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.normalized(x.float()) * (1.0 + self.weight.float())).type_as(x)


class GateRMSNorm(RMSNormLike):
    """With a second input."""

    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
        return self.weight * self.normalized(hidden_states * torch.tanh(gate))


class SquareRMSNorm(RMSNormLike):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight.square() * self.normalized(x)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def rms_norm(*shape: int, axes: int = 1, **options: Any) -> Callable[[], RuleCase]:
    return lambda: RuleCase(nn.RMSNorm(shape[-axes:], **options).double(), numbers(*shape))


class TestRMSNormRule(RuleContract):
    rule = RMSNormRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        return {
            "vectors": rms_norm(4, 3),
            "sequence": rms_norm(4, 5, 3, eps=0.1),
            "as-many-positions-as-examples": rms_norm(3, 3, 3),
            "several-axes-of-channels": rms_norm(3, 4, 2, 3, axes=2),
            "all-axes-are-channels": rms_norm(3, 4, 2, axes=2),
        }


class TestRMSNormLikeRule(RuleContract):
    rule = RMSNormLikeRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        return {
            "double": lambda: RuleCase(DoubleRMSNorm(3).double(), numbers(4, 3)),
            "double-sequence": lambda: RuleCase(DoubleRMSNorm(3).double(), numbers(4, 5, 3)),
            "single": lambda: RuleCase(SingleRMSNorm(3).double(), numbers(4, 5, 3)),
            "variance-in-single": lambda: RuleCase(OwnT5LayerNorm(3).double(), numbers(4, 2, 5, 3)),
            "gate": lambda: RuleCase(GateRMSNorm(3).double(), (numbers(4, 5, 3), numbers(4, 5, 3).flip(0))),
        }


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 3), max_size=2), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.booleans())
def test_any_geometry_equals_autograd(positions: list[int], channels: list[int], eps: bool) -> None:
    case = rms_norm(3, *positions, *channels, axes=len(channels), eps=0.1 if eps else None)()
    g = torch.ones(2, 3, *positions, *channels, dtype=torch.float64).cumsum(-1)
    agree(RMSNormRule().jacobian(case.module, case.call, g, ("weight",)).to_dense(), case.autograd(g, ("weight",)), "J")


TRANSFORMERS = {
    "llama": "LlamaRMSNorm",
    "gemma2": "Gemma2RMSNorm",
    "mistral": "MistralRMSNorm",
    "qwen2": "Qwen2RMSNorm",
    "qwen3": "Qwen3RMSNorm",
    "t5": "T5LayerNorm",
}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_modules_of_transformers(family: str) -> None:
    modeling = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    module = getattr(modeling, TRANSFORMERS[family])(6).double()
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-1, 2, 6))
    rule, case = find_rule(module), RuleCase(module, numbers(4, 5, 6))
    assert isinstance(rule, RMSNormLikeRule)
    g = numbers(3, 4, 5, 6)
    found = rule.jacobian(module, case.call, g, ("weight",)).to_dense()
    assert relative_error(found, case.autograd(g, ("weight",))) <= 1e-7


def test_one_plus_the_weight() -> None:
    module, x, g = OnePlusRMSNorm(3).double(), numbers(4, 5, 3), numbers(2, 4, 5, 3)
    case = RuleCase(module, x)
    found = RMSNormLikeRule().jacobian(module, case.call, g, ("weight",)).to_dense()
    exact = torch.einsum("cnsk,nsk->cnk", g, module.normalized(x.float()).double())
    assert relative_error(found, exact) <= 1e-14
    assert relative_error(found, case.autograd(g, ("weight",))) <= 1e-7  # which rounds g to float32


class NamedOtherwise(RMSNormLike):
    forward = DoubleRMSNorm.forward


def _with(module: nn.Module, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def _without_epsilon() -> nn.Module:
    module = DoubleRMSNorm(3)
    del module.variance_epsilon
    return module


@pytest.mark.parametrize(
    "build",
    [
        lambda: NamedOtherwise(3),
        _without_epsilon,
        lambda: _with(DoubleRMSNorm(3), bias=nn.Parameter(torch.ones(3))),
        lambda: _with(DoubleRMSNorm(3), child=nn.Linear(1, 1)),
        lambda: _with(DoubleRMSNorm(3), weight=nn.Parameter(torch.ones(3, 3))),
        lambda: _with(DoubleRMSNorm(3), forward=lambda x: x),
        lambda: parametrizations.weight_norm(DoubleRMSNorm(3), dim=None),
        lambda: nn.Linear(3, 3),
    ],
    ids=["name", "no-epsilon", "bias", "child", "matrix", "patched", "parametrized", "linear"],
)
def test_what_is_not_recognised(build: Callable[[], nn.Module]) -> None:
    assert not RMSNormLikeRule().recognizes(build())


def test_a_module_that_behaves_otherwise_is_refused_at_the_call() -> None:
    module, x = SquareRMSNorm(3).double(), numbers(4, 3)
    assert isinstance(find_rule(module), RMSNormLikeRule)
    with pytest.raises(UnsupportedLayerError) as error:
        RMSNormLikeRule().jacobian(module, Call((x,), {}, "norm"), x[None], ("weight",))
    assert str(error.value).startswith(
        "'norm' (SquareRMSNorm) has the name of a root-mean-square normalisation, but its output is not linear in its weight"
    )


def test_the_replay_calls_no_hooks_and_leaves_the_module_alone() -> None:
    module, x, calls = DoubleRMSNorm(3).double(), numbers(4, 3), []
    module.register_forward_hook(lambda *call: calls.append(call))
    weight, values = module.weight, module.weight.detach().clone()
    RMSNormLikeRule().jacobian(module, Call((), {"hidden_states": x}, "norm"), x[None], ("weight",))
    assert module.weight is weight and torch.equal(weight, values) and weight.grad is None
    assert calls == []


def test_the_rules_do_not_import_transformers() -> None:
    assert "import transformers" not in inspect.getsource(inspect.getmodule(RMSNormRule))  # type: ignore[arg-type]


SINGLE = (SingleRMSNorm, OnePlusRMSNorm, OwnT5LayerNorm)


@pytest.mark.parametrize("norm", [nn.RMSNorm, DoubleRMSNorm, *SINGLE])
def test_fisher_of_a_small_model(dense_fisher: Callable[..., Tensor], norm: Callable[[int], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), norm(4), nn.Tanh(), norm(4), nn.Flatten(), nn.Linear(8, 3)).double()
    x = numbers(5, 2, 3)
    expected = fisher(model, x, [name for name, _ in model.named_parameters()], "classif_logits")
    found = dense_fisher(model, x, "classif_logits", check="off" if norm in SINGLE else "first-batch")
    assert relative_error(found, expected) <= (1e-6 if norm in SINGLE else 1e-10)
