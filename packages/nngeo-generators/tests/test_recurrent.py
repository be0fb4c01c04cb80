"""The rule of recurrent layers and cells: every type and option, against autograd through torch's own modules."""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from nngeo_core import (
    Call,
    ClassifLogits,
    DenseJacobian,
    KroneckerJacobian,
    LayerCollection,
    LayerJacobian,
    ParameterLayer,
    UnsupportedLayerError,
)
from nngeo_core.layers.sources import find_rule
from nngeo_core.testing import RuleCase, RuleContract, fisher, kfac_factors, output_jacobian, relative_error
from nngeo_generators import HooksGenerator
from nngeo_generators.backward import pull_back_each
from nngeo_generators.rules import recurrent_replay
from nngeo_generators.rules.recurrent import RecurrentRule

pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN"
)  # torch, of float32

N, T, D, H = 3, 4, 3, 2
Build = Callable[..., Any]
Hooks = Callable[..., HooksGenerator]
DenseFisher = Callable[..., Tensor]
Kind = tuple[type[nn.Module], dict[str, Any]]

LAYERS: dict[str, Kind] = {
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, {}),
    "lstm-projected": (nn.LSTM, {"proj_size": 1}),
    "gru": (nn.GRU, {}),
}
CELLS: dict[str, Kind] = {
    "tanh-cell": (nn.RNNCell, {}),
    "relu-cell": (nn.RNNCell, {"nonlinearity": "relu"}),
    "lstm-cell": (nn.LSTMCell, {}),
    "gru-cell": (nn.GRUCell, {}),
}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def recurrent(kind: Kind, **options: Any) -> Any:
    """A module with every parameter away from its initial value."""
    module = kind[0](D, H, **kind[1], **options).double()
    for k, parameter in enumerate(module.parameters()):
        nn.init.normal_(parameter, std=0.7, generator=torch.Generator().manual_seed(k))
    return module


def states(module: nn.Module) -> list[Tensor]:
    """States to begin with, examples first: (n, layers and directions, width), or (n, width) of a cell."""
    lead = () if isinstance(module, nn.RNNCellBase) else (module.num_layers * (1 + module.bidirectional),)
    widths = [getattr(module, "proj_size", 0) or H, *[H] * isinstance(module, nn.LSTM | nn.LSTMCell)]
    return [numbers(N, *lead, width, seed=9 + k) for k, width in enumerate(widths)]


# The contract: everything that the module returned counts, as one tensor with the examples first


def moved(module: nn.Module, part: Tensor) -> Tensor:
    """Between (n, ...) and what torch's layers take and return by default."""
    return part if isinstance(module, nn.RNNCellBase) else part.transpose(0, 1)


def given(module: nn.Module, x: Tensor, *hx: Tensor) -> tuple[Any, ...]:
    x = x if getattr(module, "batch_first", True) else x.transpose(0, 1)
    begin = tuple(moved(module, part) for part in hx)
    return (x, begin[0] if len(begin) == 1 else begin) if begin else (x,)


def returned(module: nn.Module, found: Any) -> list[Tensor]:
    """What a call returned, examples first."""
    if isinstance(module, nn.RNNCellBase):
        return list(found) if isinstance(found, tuple) else [found]
    outputs, after = found
    after = after if isinstance(after, tuple) else (after,)
    return [outputs if module.batch_first else outputs.transpose(0, 1), *(part.transpose(0, 1) for part in after)]


class Together:
    """Makes a recurrent module return one tensor, as the contract's suite wants it."""

    def forward(self: Any, x: Tensor, *hx: Tensor) -> Tensor:
        found = super().forward(*given(self, x, *hx))  # type: ignore[misc]
        return torch.cat([part.flatten(1) for part in returned(self, found)], 1)


class TogetherRule(RecurrentRule):
    """Undoes that."""

    def jacobian(self, module: nn.Module, call: Call, output_gradients: Any, names: tuple[str, ...]) -> Any:
        module = copy(module)
        module.__class__ = type(module).__mro__[2]
        arguments = given(module, *call.arguments)
        parts = returned(module, module(*arguments))
        gradients = output_gradients.split([part[0].numel() for part in parts], 2)
        shaped = [g.unflatten(2, part.shape[1:]) for g, part in zip(gradients, parts, strict=True)]
        if not isinstance(module, nn.RNNCellBase):
            batch_first = [module.batch_first] + [False] * len(shaped)
            shaped = [g if first else g.transpose(1, 2) for g, first in zip(shaped, batch_first, strict=False)]
        back = shaped[0] if len(shaped) == 1 else tuple(shaped)
        return super().jacobian(module, Call(arguments, {}, "module", call.n_examples), back, names)


def contract_case(kind: Kind, steps: int = T, begun: bool = False, **options: Any) -> Callable[[], RuleCase]:
    def build() -> RuleCase:
        module = recurrent(kind, **options)
        x = numbers(N, D) if isinstance(module, nn.RNNCellBase) else numbers(N, steps, D)
        arguments = (x, *(states(module) if begun else ()))
        module.__class__ = type("Together", (Together, type(module)), {})
        return RuleCase(module, arguments)

    return build


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch-first-no-bias": {"batch_first": True, "bias": False},
    "one-step": {"steps": 1},
    "as-many-steps-as-examples": {"steps": N},
    "both-ways-begun": {"bidirectional": True, "begun": True},
    "two-layers": {"num_layers": 2, "batch_first": True},
}


class TestRecurrentRule(RuleContract):
    rule = TogetherRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        layers = {
            f"{name}-{option}": contract_case(kind, **options)
            for name, kind in LAYERS.items()
            for option, options in OPTIONS.items()
        }
        cells = {
            f"{name}-{option}": contract_case(kind, begun=begun, bias=bias)
            for name, kind in CELLS.items()
            for option, begun, bias in (("plain", False, True), ("begun", True, True), ("no-bias", True, False))
        }
        return {**layers, **cells}


# In models


def check_model(model: nn.Module, x: Tensor, hooks: Hooks, **options: Any) -> dict[str, LayerJacobian]:
    """The Jacobian against autograd; returns those of the layers."""
    generator = hooks(model, **options)
    layers = generator.layer_collection
    batch = generator.jacobian(x)
    found = batch.to_dense({layer_id: layer.numel() for layer_id, layer in layers.items()})
    expected = output_jacobian(model, x, [name for name, _ in layers.named_parameters(model)])
    assert relative_error(found, expected) <= 1e-10
    return dict(batch.layers)


def all_kronecker(layers: Mapping[str, LayerJacobian]) -> bool:
    """The way is the rule's own: the examination replaces a wrong one by the generic way, which is dense."""
    return all(isinstance(jacobian, KroneckerJacobian) for jacobian in layers.values())


def last_step(net: Any, x: Tensor) -> Tensor:
    outputs: Tensor = net.a(x)[0]
    return outputs[:, -1]


def last_state(net: Any, x: Tensor) -> Tensor:
    state = net.a(x)[1]
    return (state[-1] if isinstance(state, tuple) else state).transpose(0, 1).flatten(1)


def everything(net: Any, x: Tensor) -> Tensor:
    outputs, state = net.a(x)
    state = state if isinstance(state, tuple) else (state,)
    return torch.cat([outputs.flatten(1), *(part.transpose(0, 1).flatten(1).square() for part in state)], 1)[:, ::2]


def twice(net: Any, x: Tensor) -> Tensor:
    outputs, state = net.a(x)
    return last_step(net, x.tanh()) + net.a(x.cos(), hx=state)[0].sum(1) * outputs[:, 0]


def in_place_afterwards(net: Any, x: Tensor) -> Tensor:
    outputs: Tensor = net.a(x)[0]
    return outputs.mul_(2).sum(1)


@pytest.mark.parametrize("forward", [last_step, last_state, everything, twice, in_place_afterwards])
@pytest.mark.parametrize("kind", LAYERS.values(), ids=LAYERS)
def test_every_way_to_use_the_outputs(kind: Kind, forward: Any, build: Build, hooks: Hooks) -> None:
    model = build(forward, a=recurrent(kind, batch_first=True, num_layers=2))
    assert all_kronecker(check_model(model, numbers(N, T, D), hooks))


@pytest.mark.parametrize("kind", CELLS.values(), ids=CELLS)
def test_a_cell_in_a_loop(kind: Kind, build: Build, hooks: Hooks) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = net.a(x[:, t], hx=state)
        return torch.cat(state, 1) if isinstance(state, tuple) else state

    layers = check_model(build(forward, a=recurrent(kind)), numbers(N, T, D), hooks)
    assert list(layers) == ["a.weight_ih", "a.weight_hh"] and all_kronecker(layers)
    assert [jacobian.positions for jacobian in layers.values()] == [T, T]  # type: ignore[attr-defined]


def test_a_learned_state_and_layers_around(build: Build, hooks: Hooks) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        begin = net.begin(x[:, 0]).unsqueeze(0)
        return net.head(net.b(net.a(net.before(x), (begin, begin.tanh()))[0])[0])[:, -1]

    model = build(
        forward, before=nn.Linear(D, D), begin=nn.Linear(D, H), a=recurrent(LAYERS["lstm"], batch_first=True),
        b=nn.GRU(H, 3, batch_first=True), head=nn.Linear(3, 2),
    )  # fmt: skip
    assert all_kronecker(check_model(model, numbers(N, T, D), hooks))


@pytest.mark.parametrize("budget", [1, 5000])
def test_any_budget(budget: int, build: Build, dense_fisher: DenseFisher) -> None:
    model = build(everything, a=recurrent(LAYERS["lstm-projected"], batch_first=True, bidirectional=True))
    x, layers = numbers(5, T, D), LayerCollection.from_model(model)
    names = [name for name, _ in layers.named_parameters(model)]
    for variant in ("classif_logits", "regression"):
        found = dense_fisher(model, x, variant, memory_budget=budget)
        assert relative_error(found, fisher(model, x, names, variant)) <= 1e-10


def test_all_projections_share_one_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    module, passes = recurrent(LAYERS["gru"], num_layers=2, bidirectional=True), []
    monkeypatch.setattr(recurrent_replay, "pull_back_each", lambda *a, **k: passes.append(1) or pull_back_each(*a, **k))
    call, g = Call((numbers(T, N, D),), {}, "a", N), (numbers(2, T, N, 2 * H), numbers(2, 4, N, H))
    found = [RecurrentRule().jacobian(module, call, g, part) for part in RecurrentRule().parts(module)]
    again = RecurrentRule().jacobian(module, call, tuple(2 * part for part in g), RecurrentRule().parts(module)[0])
    assert (len(found), len(passes)) == (8, 2)
    assert relative_error(again.to_dense(), 2 * found[0].to_dense()) <= 1e-12


def test_positions_are_in_the_order_of_time_in_both_directions() -> None:
    """Masks of positions count on it: what the state before the first step is multiplied with is zero."""
    call = Call((numbers(T, N, D),), {}, "a", N)
    inputs = recurrent_replay.RecurrentReplay(recurrent(LAYERS["lstm"], bidirectional=True), call).inputs
    assert [bool(inputs["weight_hh_l0"][:, t].any()) for t in range(T)] == [False, True, True, True]
    assert [bool(inputs["weight_hh_l0_reverse"][:, t].any()) for t in range(T)] == [True, True, True, False]
    assert all(
        torch.equal(inputs[f"weight_ih_{end}"], call.arguments[0].transpose(0, 1)) for end in ("l0", "l0_reverse")
    )


# Kronecker factors


class Explicit(nn.Module):
    """One direction of one recurrent layer, written with linear layers that are called at each step."""

    def __init__(self, module: Any, ending: str, head: nn.Linear) -> None:
        super().__init__()
        self.kind, self.back, self.head = type(module), ending.endswith("reverse"), head
        for name in ("ih", "hh"):
            weight, bias = (getattr(module, f"{part}_{name}{ending}") for part in ("weight", "bias"))
            layer = nn.Linear(weight.shape[1], len(weight)).double()
            layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), H)
        for t in range(T)[:: -1 if self.back else 1]:
            a, b = self.ih(x[:, t]), self.hh(h)
            if self.kind is nn.LSTM:
                i, f, g, o = (a + b).split(H, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            elif self.kind is nn.GRU:
                (r, z, n), (s, y, m) = a.split(H, 1), b.split(H, 1)
                z = torch.sigmoid(z + y)
                h = (1 - z) * torch.tanh(n + torch.sigmoid(r + s) * m) + z * h
            else:
                h = torch.tanh(a + b)
        logits: Tensor = self.head(h)
        return logits


@pytest.mark.parametrize("ending", ["_l0", "_l0_reverse"])
@pytest.mark.parametrize("kind", [LAYERS["tanh"], LAYERS["lstm"], LAYERS["gru"]], ids=["tanh", "lstm", "gru"])
def test_kronecker_factors(kind: Kind, ending: str, build: Build, hooks: Hooks) -> None:
    """Those of linear layers called T times: A adds up over the steps, G is an average over them."""
    x, way = numbers(N, T, D), int(ending.endswith("reverse"))
    model = build(
        lambda net, x: net.head(net.a(x)[1][way] if kind[0] is not nn.LSTM else net.a(x)[1][0][way]),
        a=recurrent(kind, batch_first=True, bidirectional=True), head=nn.Linear(H, 5),
    )  # fmt: skip
    explicit = Explicit(model.a, ending, model.head)
    assert relative_error(model(x), explicit(x)) <= 1e-12
    found = hooks(model, ClassifLogits()).jacobian(x).layers
    for name in ("ih", "hh"):
        factors = found[f"a.weight_{name}{ending}"].kronecker_factors()
        inputs, outputs = kfac_factors(explicit, x, name, "classif_logits")
        assert relative_error(factors.inputs / N, inputs) <= 1e-10
        assert relative_error(factors.outputs / N, outputs) <= 1e-10


# The layers of a collection


def test_each_projection_is_a_layer() -> None:
    model = nn.Sequential(nn.Linear(3, D), nn.LSTM(D, H, 2, bidirectional=True, proj_size=1))
    layers = LayerCollection.from_model(model)
    endings = ("l0", "l0_reverse", "l1", "l1_reverse")
    expected = [f"1.weight_{name}_{ending}" for ending in endings for name in ("ih", "hh", "hr")]
    assert list(layers) == ["0", *expected]
    assert layers["1.weight_hh_l1"] == ParameterLayer((("weight_hh_l1", (8, 1)), ("bias_hh_l1", (8,))))
    assert layers["1.weight_hr_l0_reverse"] == ParameterLayer((("weight_hr_l0_reverse", (1, 2)),))
    assert {name for name, _ in layers.named_parameters(model)} == {name for name, _ in model.named_parameters()}
    modules, own = layers.get_layerid_module_maps(model)[0], dict(model.named_parameters())
    assert [own[name] is parameter for (name, parameter) in layers.named_parameters(model)] == [True] * 22
    assert all(modules[layer_id] is model[1] for layer_id in expected)
    assert list(LayerCollection.from_model(model, only=["1.weight_hh_*"])) == [n for n in expected if "hh" in n]


def test_some_parameters_alone(build: Build, hooks: Hooks) -> None:
    model = build(last_step, a=recurrent(LAYERS["gru"], batch_first=True))
    model.a.weight_ih_l0.requires_grad_(False)
    model.a.bias_hh_l0.requires_grad_(False)
    layers = LayerCollection.from_model(model, trainable_only=True)
    assert layers.parameter_names == {
        "a.bias_ih_l0": ("a.bias_ih_l0",),
        "a.weight_hh_l0": ("a.weight_hh_l0",),
    }
    assert all_kronecker(check_model(model, numbers(N, T, D), hooks, layer_collection=layers))


def test_one_layer_of_all_parameters_is_exact_too(build: Build, hooks: Hooks) -> None:
    model, whole = build(last_step, a=recurrent(LAYERS["lstm"], batch_first=True)), LayerCollection()
    whole.add_layer("a", ParameterLayer(tuple((name, tuple(p.shape)) for name, p in model.a.named_parameters())))
    check_model(model, numbers(N, T, D), hooks, layer_collection=whole)


def test_tied_weights(build: Build, hooks: Hooks) -> None:
    """Of two layers of one module, and of a recurrent and a linear layer."""
    model = build(
        lambda net, x: net.a(net.first(x))[0][:, -1],
        first=nn.Linear(H, H), a=nn.RNN(H, H, 2, batch_first=True),
    )  # fmt: skip
    model.a.weight_hh_l1 = model.a.weight_hh_l0
    model.a.weight_ih_l1 = model.first.weight
    layers = check_model(model, numbers(N, T, H), hooks)
    assert all_kronecker(layers) and sum(jacobian.shape[2] for jacobian in layers.values()) == 3 * 4 + 5 * 2
    assert layers["a.weight_hh_l0"].positions == 2 * T  # type: ignore[attr-defined]


def test_weights_that_are_no_parameters(build: Build, hooks: Hooks) -> None:
    model = build(last_step, a=recurrent(LAYERS["gru"], batch_first=True))
    weight = model.a.weight_hh_l0.detach()
    del model.a.weight_hh_l0
    model.a.register_buffer("weight_hh_l0", weight)
    layers = check_model(model, numbers(N, T, D), hooks)
    assert all_kronecker(layers)
    assert [jacobian.shape[2] for jacobian in layers.values()] == [6 * D + 6, 6]


# What the rule declines or refuses


def packed(net: Any, x: Tensor) -> Tensor:
    lengths = 2 + (x[:, 0, 0] > 0).long()
    found = net.a(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    return torch.cat([pad_packed_sequence(found[0], batch_first=True)[0].sum(1), found[1][0]], 1)


def one_by_one(net: Any, x: Tensor) -> Tensor:
    return torch.stack([net.a(row)[0][-1] for row in x])


TOKENS = numbers(1, T, D)


@pytest.mark.parametrize(
    "forward", [packed, one_by_one, lambda net, x: net.a(TOKENS)[0][:, -1] * x[:, 0, :H]],
    ids=["packed", "without-an-example-axis", "shared-by-all-examples"],
)  # fmt: skip
def test_other_calls_go_the_generic_way_and_are_exact(forward: Any, build: Build, hooks: Hooks) -> None:
    layers = check_model(build(forward, a=recurrent(LAYERS["gru"], batch_first=True)), numbers(N, T, D), hooks)
    assert [type(jacobian) for jacobian in layers.values()] == [DenseJacobian] * 2


def doubled(self: nn.Module, *inputs: Any) -> Any:
    outputs, state = nn.GRU.forward(self, *inputs)  # type: ignore[arg-type]
    return 2 * outputs, state


@pytest.mark.parametrize("change", ["subclass", "forward", "weight-norm"])
def test_what_the_rule_does_not_know_goes_the_generic_way(change: str, build: Build, hooks: Hooks) -> None:
    module = recurrent(LAYERS["gru"], batch_first=True)
    if change == "subclass":
        module.__class__ = type("Doubled", (nn.GRU,), {"forward": doubled})
    if change == "forward":
        module.forward = lambda *inputs: doubled(module, *inputs)
    if change == "weight-norm":
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    rule = find_rule(module)
    assert rule is not None and rule.name == "generic"
    check_model(build(last_step, a=module), numbers(N, T, D), hooks)


def test_a_module_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module, call = recurrent(LAYERS["tanh"]), Call((numbers(T, N, D),), {}, "a", N)
    monkeypatch.setattr(module, "nonlinearity", "relu")
    with pytest.raises(UnsupportedLayerError, match=r"'a' \(RNN\), run again .* does not return what the rule"):
        RecurrentRule().jacobian(module, call, (numbers(1, T, N, H), numbers(1, 1, N, H)), ("weight_hh_l0",))


@pytest.mark.parametrize(("kind", "shape", "axes", "place"), [
    (LAYERS["gru"], (N, T, D), 3, 1), (LAYERS["gru"], (T, D), 3, 1), (CELLS["gru-cell"], (T, D), 2, 0),
])  # fmt: skip
def test_examples_elsewhere_are_refused(kind: Kind, shape: tuple[int, ...], axes: int, place: int) -> None:
    call = Call((numbers(*shape),), {}, "a", N)
    expected = rf"'a' .* was called on shape .* for 3 examples; expected {axes} axes, .* in place {place}"
    module = recurrent(kind)
    with pytest.raises(UnsupportedLayerError, match=expected):
        RecurrentRule().jacobian(module, call, numbers(1, *shape), RecurrentRule().parts(module)[0])


def test_steps_across_examples_are_refused(build: Build, hooks: Hooks) -> None:
    with pytest.raises(UnsupportedLayerError, match="the model mixes examples"):
        hooks(build(last_step, a=recurrent(LAYERS["gru"]))).jacobian(numbers(N, N, D))


def test_half_precision_is_differentiated_in_single() -> None:
    module, x, g = recurrent(LAYERS["lstm"]), numbers(T, N, D), numbers(2, T, N, H).float()
    begin = numbers(1, N, H)
    gradients, nothing, names = (g, g[:, :1], g[:, :1]), (begin, begin), ("weight_hh_l0", "bias_hh_l0")
    doubles = tuple(part.double() for part in gradients)
    expected = RecurrentRule().jacobian(module, Call((x, nothing), {}, "a", N), doubles, names).to_dense()
    call = Call((x.bfloat16(), (begin.bfloat16(), begin.bfloat16())), {}, "a", N)
    found = RecurrentRule().jacobian(module.bfloat16(), call, gradients, names).to_dense()
    assert found.dtype == torch.float32 and relative_error(found.double(), expected) <= 0.03
