"""The rule of multi-head attention: every layout, mask and input, against autograd through torch's own module."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import (
    Call,
    ClassifLogits,
    DenseJacobian,
    KroneckerJacobian,
    LayerCollection,
    ParameterLayer,
    UnsupportedLayerError,
)
from nngeo_core.jacobians.contraction import blocks
from nngeo_core.layers.sources import find_rule
from nngeo_core.testing import RuleCase, RuleContract, fisher, kfac_factors, output_jacobian, relative_error
from nngeo_core.testing.jacobian_contract import agree
from nngeo_generators import HooksGenerator
from nngeo_generators.rules import attention_core
from nngeo_generators.rules.attention import MultiheadAttentionRule
from nngeo_generators.rules.attention_core import attend

N, T, E, H = 4, 3, 6, 2
Attend = Callable[[nn.MultiheadAttention, Tensor], Tensor]
Build = Callable[..., Any]
Hooks = Callable[..., HooksGenerator]
DenseFisher = Callable[..., Tensor]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attention(**options: Any) -> nn.MultiheadAttention:
    """With every parameter away from its initial value."""
    module = nn.MultiheadAttention(E, H, **{"batch_first": True} | options).double()
    for k, parameter in enumerate(module.parameters()):
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(k))
    return module


class OneOutput(nn.MultiheadAttention):
    """Without the attention weights, as the contract's suite wants it."""

    def forward(self, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(*inputs, need_weights=False)[0]


def contract_case(inputs: Callable[[], tuple[Tensor, ...]], **options: Any) -> Callable[[], RuleCase]:
    def build() -> RuleCase:
        module = attention(**options)
        module.__class__ = OneOutput
        return RuleCase(module, inputs())

    return build


class TestMultiheadAttentionRule(RuleContract):
    rule = MultiheadAttentionRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        def cross(*widths: int) -> Callable[[], tuple[Tensor, ...]]:
            shapes = list(zip((2, 3, 3), widths, strict=True))
            return lambda: tuple(numbers(N, s, width, seed=k) for k, (s, width) in enumerate(shapes))

        return {
            "self": contract_case(lambda: (numbers(N, T, E),) * 3),
            "self-no-bias": contract_case(lambda: (numbers(N, T, E),) * 3, bias=False),
            "one-position": contract_case(lambda: (numbers(N, 1, E),) * 3),
            "as-many-positions-as-examples": contract_case(lambda: (numbers(3, 3, E),) * 3),
            "cross": contract_case(cross(E, E, E)),
            "widths": contract_case(cross(E, 5, 4), kdim=5, vdim=4),
            "widths-no-bias": contract_case(cross(E, 5, E), kdim=5, bias=False),
            "zero-attention": contract_case(lambda: (numbers(N, T, E),) * 3, add_zero_attn=True),
        }


def on_itself(**keywords: Any) -> Attend:
    return lambda attn, x: attn(x, x, x, **keywords)[0]


def with_weights(average: bool) -> Attend:
    def attend(attn: nn.MultiheadAttention, x: Tensor) -> Tensor:
        y, weights = attn(x, x, x, average_attn_weights=average)
        return torch.cat([y.flatten(1), weights.flatten(1).square()], 1).unsqueeze(1)

    return attend


def padded(x: Tensor) -> Tensor:
    """Which positions to ignore, never all of an example, different from example to example."""
    hidden = x[..., 0] > 0.3
    return hidden & (torch.arange(x.shape[1]) > 0)


def mask_by_head(x: Tensor) -> Tensor:
    """(n h, t, t), of numbers."""
    return torch.stack([x @ x.mT, x @ x.flip(1).mT], 1).flatten(0, 1)


CAUSAL = torch.ones(T, T, dtype=torch.bool).triu(1)
SOME = torch.tensor([[False, True, False], [True, False, False], [False, False, True]])
FORWARDS: dict[str, Attend] = {
    "plain": on_itself(),
    "no-weights": on_itself(need_weights=False),
    "average-weights-returned": with_weights(average=True),
    "weights-of-heads-returned": with_weights(average=False),
    "causal": on_itself(attn_mask=CAUSAL, is_causal=True),
    "causal-no-weights": on_itself(attn_mask=CAUSAL, is_causal=True, need_weights=False),
    "mask": on_itself(attn_mask=SOME),
    "mask-of-numbers": on_itself(attn_mask=numbers(T, T), need_weights=False),
    "mask-by-head": lambda attn, x: attn(x, x, x, attn_mask=mask_by_head(x))[0],
    "mask-by-head-no-weights": lambda attn, x: attn(x, x, x, attn_mask=mask_by_head(x) > 2, need_weights=False)[0],
    "padding": lambda attn, x: attn(x, x, x, padded(x))[0],
    "padding-of-numbers": lambda attn, x: attn(x, x, x, key_padding_mask=x[..., 1], need_weights=False)[0],
    "padding-and-mask": lambda attn, x: attn(x, x, x, key_padding_mask=padded(x), attn_mask=CAUSAL, is_causal=True)[0],
    "hint-that-does-not-fit": on_itself(attn_mask=SOME, is_causal=True, need_weights=False),
    "nothing-to-attend-to": on_itself(attn_mask=SOME | (torch.arange(T) == 1)[:, None], need_weights=False),
    "fewer-queries": lambda attn, x: attn(x[:, :2], x, x)[0],
    "memory": lambda attn, x: attn(x, x.tanh(), x.tanh())[0],
    "same-queries-and-keys": lambda attn, x: attn(x, x, x.tanh())[0],
    "same-queries-and-values": lambda attn, x: attn(x, x.tanh(), x)[0],
    "all-different": lambda attn, x: attn(x[:, :1], value=x.cos(), key=x.tanh(), need_weights=False)[0],
    "twice": lambda attn, x: attn(*(attn(x, x, x)[0].tanh(),) * 3)[0],
    "twice-unlike": lambda attn, x: attn(attn(x, x, x)[0], x[:, :2], x[:, :2])[0],
    "changed-in-place-afterwards": lambda attn, x: attn(x, x, x)[0].relu_(),
    "untouched-weights": lambda attn, x: torch.cat([attn(x, x, x)[0], attn(x, x, x)[1]], 2).sum(2, keepdim=True),
}
OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "zero-attention": {"add_zero_attn": True}}


def check_model(model: nn.Module, x: Tensor, hooks: Hooks, variant: str = "regression") -> dict[str, Any]:
    """Rows of the Jacobian, and what representations read off them, against autograd; returns the layers' Jacobians."""
    generator = hooks(model)
    layers = generator.layer_collection
    names = [name for name, _ in layers.named_parameters(model)]
    batch = generator.jacobian(x)
    expected = output_jacobian(model, x, names)
    found = batch.to_dense({layer_id: layer.numel() for layer_id, layer in layers.items()})
    assert relative_error(found, expected) <= 1e-10
    for layer_id, jacobian in batch.layers.items():
        block = expected[..., layers.slices()[layer_id]]
        assert relative_error(jacobian.sum_of_squares(), block.square().sum((0, 1))) <= 1e-10
        assert relative_error(jacobian.gram(jacobian), torch.einsum("cnd,kmd->cnkm", block, block)) <= 1e-10
    return dict(batch.layers)


HINTED = ("causal-no-weights", "hint-that-does-not-fit")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", FORWARDS)
def test_every_way_to_call_it(name: str, options: dict[str, Any], build: Build, hooks: Hooks) -> None:
    model = build(lambda net, x: FORWARDS[name](net.attn, x).flatten(1)[:, ::2], attn=attention(**options))
    layers = check_model(model, numbers(N, T, E), hooks)
    assert list(layers) == ["attn.in_proj_weight", "attn.out_proj.weight"]
    refused = "add_zero_attn" in options and name in HINTED  # a causal mask over one more key than there are inputs
    assert [type(jacobian) for jacobian in layers.values()] == [DenseJacobian if refused else KroneckerJacobian] * 2


def sequence_first(attn: nn.MultiheadAttention, x: Tensor) -> Tensor:
    return attn(*(x.transpose(0, 1),) * 3)[0].transpose(0, 1)


def sequence_first_with_weights(attn: nn.MultiheadAttention, x: Tensor) -> Tensor:
    y, weights = attn(x[:, :2].transpose(0, 1), *(x.transpose(0, 1),) * 2, key_padding_mask=padded(x))
    return torch.cat([y.transpose(0, 1), weights.square()], 2)


@pytest.mark.parametrize("positions", [1, 3, N])
@pytest.mark.parametrize("attend", [sequence_first, sequence_first_with_weights])
def test_sequence_first(attend: Attend, positions: int, build: Build, hooks: Hooks) -> None:
    model = build(lambda net, x: attend(net.attn, x).flatten(1), attn=attention(batch_first=False))
    layers = check_model(model, numbers(N, positions + 1, E)[:, 1:], hooks)
    assert all(isinstance(jacobian, KroneckerJacobian) for jacobian in layers.values())


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_widths_of_their_own(bias: bool, batch_first: bool, build: Build, hooks: Hooks) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        inputs = (x[:, :2], x[..., :5], x[..., 1:5])
        inputs = inputs if batch_first else tuple(part.transpose(0, 1) for part in inputs)
        return net.attn(*inputs)[0].transpose(0, 0 if batch_first else 1).flatten(1)

    model = build(forward, attn=attention(batch_first=batch_first, bias=bias, kdim=5, vdim=4))
    layers = check_model(model, numbers(N, T, E), hooks)
    weights = [f"attn.{name}_proj_weight" for name in "qkv"]
    assert list(layers) == [*weights, *["attn.in_proj_bias"] * bias, "attn.out_proj.weight"]
    assert all(isinstance(jacobian, KroneckerJacobian) for jacobian in layers.values())


@pytest.mark.parametrize("budget", [1, 3000])
def test_any_budget(budget: int, build: Build, dense_fisher: DenseFisher) -> None:
    model = build(lambda net, x: net.attn(x, x, x)[0].sum(2), attn=attention())
    x = numbers(5, T, E)
    expected = fisher(model, x, [name for name, _ in model.named_parameters()], "classif_logits")
    assert relative_error(dense_fisher(model, x, "classif_logits", memory_budget=budget), expected) <= 1e-10


def encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(E, H, 5, dropout=0.1, **options).double().eval()


ENCODERS = {
    "encoder": ({"batch_first": True}, lambda net, x: net.layer(x)),
    "encoder-norm-first": ({"batch_first": True, "norm_first": True}, lambda net, x: net.layer(x)),
    "encoder-causal": ({"batch_first": True}, lambda net, x: net.layer(x, src_mask=CAUSAL, is_causal=True)),
    "encoder-padded": ({"batch_first": True}, lambda net, x: net.layer(x, src_key_padding_mask=padded(x))),
    "encoder-sequence-first": ({}, lambda net, x: net.layer(x.transpose(0, 1)).transpose(0, 1)),
}


@pytest.mark.parametrize(("options", "forward"), ENCODERS.values(), ids=ENCODERS)
def test_encoder_layers(options: dict[str, Any], forward: Any, build: Build, hooks: Hooks) -> None:
    model = build(lambda net, x: forward(net, x).mean(1), layer=encoder(**options)).eval()
    layers = check_model(model, numbers(N, T, E), hooks)
    for layer_id in ("layer.self_attn.in_proj_weight", "layer.self_attn.out_proj.weight"):
        assert isinstance(layers[layer_id], KroneckerJacobian)


def test_a_stack_of_encoder_layers_with_padding(build: Build, hooks: Hooks) -> None:
    stack = nn.TransformerEncoder(encoder(batch_first=True), 2, enable_nested_tensor=False)
    model = build(lambda net, x: net.stack(x, src_key_padding_mask=padded(x))[:, 0], stack=stack).eval()
    check_model(model, numbers(N, T, E), hooks)


def test_decoder_layers(build: Build, hooks: Hooks) -> None:
    layer = nn.TransformerDecoderLayer(E, H, 5, dropout=0.1, batch_first=True).double().eval()
    model = build(
        lambda net, x: net.layer(x[:, :T], x.tanh(), tgt_mask=CAUSAL, tgt_is_causal=True).mean(1), layer=layer
    ).eval()
    layers = check_model(model, numbers(N, 4, E), hooks)
    found = [layer_id for layer_id in layers if "attn" in layer_id]
    names = ("in_proj_weight", "out_proj.weight")
    assert found == [f"layer.{attn}.{name}" for attn in ("self_attn", "multihead_attn") for name in names]
    assert all(isinstance(layers[layer_id], KroneckerJacobian) for layer_id in found)


# Kronecker factors


class Explicit(nn.Module):
    """Attention written with linear layers; queries read the first `t` positions, keys and values all of them."""

    def __init__(self, attn: nn.MultiheadAttention, t: int) -> None:
        super().__init__()
        q, k, v = attn.in_proj_weight.split(E)
        b, c, d = attn.in_proj_bias.split(E)
        self.t = t
        self.all = linear(attn.in_proj_weight, attn.in_proj_bias)
        self.queries, self.others = linear(q, b), linear(torch.cat([k, v]), torch.cat([c, d]))
        self.heads = linear(attn.out_proj.weight, attn.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.all(x) if self.t == x.shape[1] else torch.cat([self._queries(x), self.others(x)], 2)
        q, k, v = (part.unflatten(2, (H, -1)).transpose(1, 2) for part in projected.split(E, 2))
        weights = (q[:, :, : self.t] @ k.mT / (E // H) ** 0.5).softmax(3)
        return self.heads((weights @ v).transpose(1, 2).flatten(2)).mean(1)

    def _queries(self, x: Tensor) -> Tensor:
        return nn.functional.pad(self.queries(x[:, : self.t]), (0, 0, 0, x.shape[1] - self.t))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], len(weight)).double()
    layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return layer


def factors(hooks: Hooks, model: nn.Module, x: Tensor, layer_id: str) -> tuple[Tensor, Tensor]:
    found = hooks(model, ClassifLogits()).jacobian(x).layers[layer_id].kronecker_factors()
    return found.inputs / len(x), found.outputs / len(x)


def test_kronecker_factors_of_self_attention(build: Build, hooks: Hooks) -> None:
    model, x = build(lambda net, x: net.attn(x, x, x)[0].mean(1), attn=attention()), numbers(N, T, E)
    explicit = Explicit(model.attn, T)
    for layer_id, name in {"attn.in_proj_weight": "all", "attn.out_proj.weight": "heads"}.items():
        expected = kfac_factors(explicit, x, name, "classif_logits")
        for found, reference in zip(factors(hooks, model, x, layer_id), expected, strict=True):
            assert relative_error(found, reference) <= 1e-10


def test_kronecker_factors_of_cross_attention(build: Build, hooks: Hooks) -> None:
    """Both inputs' positions count: A adds up over them, G is an average over them."""

    def forward(net: Any, x: Tensor) -> Tensor:
        memory = x.clone()
        return net.attn(x[:, :2], memory, memory)[0].mean(1)

    model, x = build(forward, attn=attention()), numbers(N, T, E)
    explicit = Explicit(model.attn, 2)
    (a, g), (b, h) = (kfac_factors(explicit, x, name, "classif_logits") for name in ("queries", "others"))
    inputs, outputs = factors(hooks, model, x, "attn.in_proj_weight")
    assert relative_error(inputs, a + b) <= 1e-10
    assert relative_error(outputs[0], torch.block_diag(2 * g[0], T * h[0]) / (2 + T)) <= 1e-10


# the layers of a collection


def test_each_matrix_is_a_layer() -> None:
    model = nn.Sequential(nn.Linear(3, E), attention())
    layers = LayerCollection.from_model(model)
    assert list(layers) == ["0", "1.in_proj_weight", "1.out_proj.weight"]
    assert layers["1.in_proj_weight"] == ParameterLayer((("in_proj_weight", (18, 6)), ("in_proj_bias", (18,))))
    assert layers.named_parameters(model) == tuple(model.named_parameters())
    modules = layers.get_layerid_module_maps(model)[0]
    assert (modules["1.in_proj_weight"], modules["1.out_proj.weight"]) == (model[1], model[1].out_proj)
    assert list(layers.parameters(modules)) == list(model.parameters())
    assert list(LayerCollection.from_model(model, only=[nn.MultiheadAttention])) == list(layers)[1:]
    assert list(LayerCollection.from_model(model, only=["1.out_proj.*"])) == ["1.out_proj.weight"]


def test_a_module_is_added_as_the_layers_that_it_makes_up() -> None:
    model = nn.Sequential(nn.Linear(3, E), attention(bias=False))
    layers = LayerCollection()
    layers.add_layer_from_model(model, model[1])
    assert layers.parameter_names == {
        "1.in_proj_weight": ("1.in_proj_weight",),
        "1.out_proj.weight": ("1.out_proj.weight",),
    }
    alone = LayerCollection()
    alone.add_layer_from_model(model[1], model[1])
    assert list(alone) == ["in_proj_weight", "out_proj.weight"] == list(LayerCollection.from_model(model[1]))


def test_a_frozen_projection_is_left_out(build: Build, hooks: Hooks) -> None:
    model, x = build(lambda net, x: net.attn(x, x, x)[0].mean(1), attn=attention()), numbers(N, T, E)
    model.attn.in_proj_weight.requires_grad_(False)
    layers = LayerCollection.from_model(model, trainable_only=True)
    assert layers.parameter_names == {
        "attn.in_proj_bias": ("attn.in_proj_bias",),
        "attn.out_proj.weight": ("attn.out_proj.weight", "attn.out_proj.bias"),
    }
    model.attn.in_proj_bias.requires_grad_(False)
    for trainable in (layers, LayerCollection.from_model(model, trainable_only=True)):
        generator = hooks(model, layer_collection=trainable)
        found = generator.jacobian(x).to_dense({name: layer.numel() for name, layer in trainable.items()})
        names = [name for name, _ in trainable.named_parameters(model)]
        assert relative_error(found, output_jacobian(model, x, names)) <= 1e-10


def test_one_layer_of_all_parameters_is_exact_too(build: Build, hooks: Hooks) -> None:
    model, x = build(lambda net, x: net.attn(x, x, x)[0].mean(1), attn=attention()), numbers(N, T, E)
    whole = LayerCollection()
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in model.attn.named_parameters())
    whole.add_layer("attn", ParameterLayer(shapes))
    found = hooks(model, layer_collection=whole).jacobian(x).layers["attn"].to_dense()
    names = [name for name, _ in whole.named_parameters(model)]
    assert relative_error(found, output_jacobian(model, x, names)) <= 1e-10


def test_a_matrix_tied_to_another_layer(build: Build, hooks: Hooks) -> None:
    model = build(
        lambda net, x: net.attn(*(net.first(x),) * 3)[0].mean(1), first=nn.Linear(E, E, bias=False), attn=attention()
    )
    model.attn.out_proj.weight = model.first.weight
    layers = check_model(model, numbers(N, T, E), hooks)
    assert list(layers) == ["first", "attn.in_proj_weight", "attn.out_proj.bias"]


# what the rule declines or refuses


@pytest.mark.parametrize("change", [{"add_bias_kv": True}, "subclass", "forward", "child"])
def test_what_the_rule_does_not_know_goes_the_generic_way(change: Any, build: Build, hooks: Hooks) -> None:
    attn = attention(**(change if isinstance(change, dict) else {}))
    if change == "subclass":
        attn.__class__ = type("Scaled", (nn.MultiheadAttention,), {"forward": scaled})
    if change == "forward":
        attn.forward = lambda *inputs: scaled(attn, *inputs)
    if change == "child":
        nn.utils.parametrizations.weight_norm(attn.out_proj)
    rule = find_rule(attn)
    assert rule is not None and rule.name == "generic"
    model = build(lambda net, x: net.attn(x, x, x)[0].mean(1), attn=attn)
    assert list(check_model(model, numbers(N, T, E), hooks)) == ["attn"]


def scaled(self: nn.MultiheadAttention, *inputs: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
    outputs, weights = torch_forward(self, *inputs, **options)
    return 2 * outputs, weights


torch_forward = nn.MultiheadAttention.forward


def test_a_module_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.MultiheadAttention, "forward", scaled)
    x, g = numbers(N, T, E), numbers(1, N, T, E)
    with pytest.raises(UnsupportedLayerError, match=r"'attn' \(MultiheadAttention\), run again .* does not return"):
        MultiheadAttentionRule().jacobian(attention(), Call((x, x, x), {}, "attn", N), g, ("out_proj.weight",))


@pytest.mark.parametrize("batch_first", [True, False])
def test_examples_on_the_wrong_axis_are_refused(batch_first: bool) -> None:
    shape = (T, N, E) if batch_first else (N, T, E)
    call = Call((numbers(*shape),) * 3, {}, "attn", N)
    expected = rf"'attn' was called on shapes .* for 4 examples; .* in place {0 if batch_first else 1}"
    with pytest.raises(UnsupportedLayerError, match=expected):
        MultiheadAttentionRule().jacobian(
            attention(batch_first=batch_first), call, numbers(1, *shape), ("in_proj_weight",)
        )


def test_attention_across_examples_is_refused(build: Build, hooks: Hooks) -> None:
    model = build(lambda net, x: net.attn(x, x, x)[0].mean(1), attn=attention(batch_first=False))
    with pytest.raises(UnsupportedLayerError, match="the model mixes examples"):
        hooks(model).jacobian(numbers(N, N, E))


def test_tokens_that_all_examples_share_are_exact(build: Build, hooks: Hooks) -> None:
    tokens = numbers(1, 2, E)
    model = build(lambda net, x: (net.attn(tokens, tokens, tokens)[0] * x).sum(1), attn=attention())
    check_model(model, numbers(N, 1, E), hooks)


def test_half_precision_is_differentiated_in_single() -> None:
    module, x = attention(), numbers(N, T, E)
    g = numbers(2, N, T, E).float()
    expected = MultiheadAttentionRule().jacobian(
        module, Call((x, x, x), {}, "attn", N), g.double(), ("in_proj_weight",)
    )
    module, x = module.bfloat16(), x.bfloat16()
    found = MultiheadAttentionRule().jacobian(module, Call((x, x, x), {}, "attn", N), g, ("in_proj_weight",))
    assert found.to_dense().dtype == torch.float32
    assert relative_error(found.to_dense().double(), expected.to_dense()) <= 0.03


def test_directions_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (numbers(N, T, E, seed=seed) for seed in range(3))
    core = attend(q, k, v, H, None)
    outputs, weights = numbers(7, N, T, E), numbers(7, N, H, T, T)
    expected = core.pull_back(outputs, weights)
    monkeypatch.setattr(attention_core, "blocks", lambda count, size: blocks(count, size, 2 * size))
    for found, reference in zip(core.pull_back(outputs, weights), expected, strict=True):
        agree(found, reference, "pull_back")
