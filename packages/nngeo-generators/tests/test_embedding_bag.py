"""The rule of embedding bags."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nngeo_core import Call, DenseJacobian, IndexJacobian, LayerCollection, UnsupportedLayerError
from nngeo_core.testing import RuleCase, RuleContract
from nngeo_core.testing.jacobian_contract import agree
from nngeo_core.testing.oracles import fisher, relative_error
from nngeo_generators.rules.embedding_bag import EmbeddingBagRule

NAMES = ("weight",)
MODES = ("sum", "mean", "max")


def bags(*shape: int, rows: int = 5, **options: Any) -> Callable[[], RuleCase]:
    def build() -> RuleCase:
        index = torch.randint(rows, shape, generator=torch.Generator().manual_seed(0))
        return RuleCase(nn.EmbeddingBag(rows, 3, **options).double(), index)

    return build


class TestEmbeddingBagRule(RuleContract):
    rule = EmbeddingBagRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        cases = {}
        for mode in MODES:
            cases[mode] = bags(4, 6, mode=mode)
            cases[f"{mode}-of-one"] = bags(4, 1, mode=mode)
            cases[f"{mode}-padding"] = bags(4, 3, mode=mode, padding_idx=2, rows=3)
            cases[f"{mode}-rows-that-never-occur"] = bags(3, 2, mode=mode, rows=20)
        return cases


def by_bag(module: nn.EmbeddingBag, g: Tensor, *arguments: Tensor, **keywords: Any) -> tuple[Tensor, Tensor]:
    """What the rule finds for one call, and autograd's Jacobian, one output gradient at a time; both (c, n, d)."""
    output = module(*arguments, **keywords)
    rows = []
    for direction in g:
        for i, gradient in enumerate(direction):
            cotangent = torch.zeros_like(output)
            cotangent[i] = gradient
            rows.append(torch.autograd.grad(output, module.weight, cotangent, retain_graph=True)[0].flatten())
    found = EmbeddingBagRule().jacobian(module, Call(arguments, keywords, "bags"), g, NAMES)
    return found.to_dense(), torch.stack(rows).view(*g.shape[:2], -1)


@st.composite
def ragged(draw: st.DrawFn) -> tuple[nn.EmbeddingBag, Tensor, Tensor]:
    """Bags of any length, empty ones too, with their offsets."""
    rows, lengths = draw(st.integers(1, 4)), draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    last, padding = draw(st.booleans()), draw(st.sampled_from([None, 0]))
    mode = draw(st.sampled_from(MODES))
    module = nn.EmbeddingBag(rows, 2, mode=mode, include_last_offset=last, padding_idx=padding).double()
    torch.nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    places = torch.tensor([0, *lengths]).cumsum(0)
    index = torch.tensor(draw(st.lists(st.integers(0, rows - 1), min_size=sum(lengths), max_size=sum(lengths))))
    return module, index.long(), places if last else places[:-1]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(ragged())
def test_bags_of_any_lengths(case: tuple[nn.EmbeddingBag, Tensor, Tensor]) -> None:
    module, index, offsets = case
    n = len(offsets) - module.include_last_offset
    g = torch.randn(2, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected = by_bag(module, g, index, offsets)
    agree(found, expected, "to_dense")


@pytest.mark.parametrize("padding_idx", [None, 1])
@pytest.mark.parametrize("as_keyword", [False, True])
def test_weights_of_the_look_ups(padding_idx: int | None, as_keyword: bool) -> None:
    module = nn.EmbeddingBag(4, 3, mode="sum", padding_idx=padding_idx).double()
    index, g = torch.tensor([[0, 1, 1], [3, 0, 1]]), torch.randn(2, 2, 3, dtype=torch.float64)
    weights = torch.tensor([[0.5, -1, 2], [3, 0, 1]], dtype=torch.float64)
    arguments, keywords = ((index,), {"per_sample_weights": weights}) if as_keyword else ((index, None, weights), {})
    agree(*by_bag(module, g, *arguments, **keywords), "to_dense")  # type: ignore[arg-type]


def test_weights_of_ragged_bags() -> None:
    module, g = nn.EmbeddingBag(4, 3, mode="sum").double(), torch.randn(2, 3, 3, dtype=torch.float64)
    index, weights = torch.tensor([0, 1, 1, 3, 0]), torch.tensor([0.5, -1, 2, 3, 0], dtype=torch.float64)
    agree(*by_bag(module, g, index, offsets=torch.tensor([0, 3, 3]), per_sample_weights=weights), "to_dense")


def test_sums_keep_the_structure_and_maxima_have_none() -> None:
    call, g = Call((torch.tensor([[0, 1]]),), {}, "bags"), torch.ones(1, 1, 2)
    found = {mode: EmbeddingBagRule().jacobian(nn.EmbeddingBag(3, 2, mode=mode), call, g, NAMES) for mode in MODES}
    assert {mode: type(jacobian) for mode, jacobian in found.items()} == {
        "sum": IndexJacobian,
        "mean": IndexJacobian,
        "max": DenseJacobian,
    }


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_kronecker_factors_do_not_depend_on_how_far_bags_are_filled_up(mode: str) -> None:
    module, rule = nn.EmbeddingBag(4, 2, mode=mode).double(), EmbeddingBagRule()
    g = torch.randn(1, 2, 2, dtype=torch.float64)
    index, offsets = torch.tensor([0, 1, 1, 3]), torch.tensor([0, 1])
    both = rule.jacobian(module, Call((index, offsets), {}, "bags"), g, NAMES).kronecker_factors()
    calls = [(index[:1], offsets[:1]), (index[1:], offsets[:1])]
    alone = [
        rule.jacobian(module, Call(call, {}, "bags"), g[:, k : k + 1], NAMES).kronecker_factors()
        for k, call in enumerate(calls)
    ]
    assert relative_error(both.inputs, alone[0].inputs + alone[1].inputs) <= 1e-15
    assert relative_error(both.outputs, alone[0].outputs + alone[1].outputs) <= 1e-15


def test_bags_without_offsets_are_refused() -> None:
    call = Call((torch.tensor([0, 1]),), {}, "bags")
    with pytest.raises(UnsupportedLayerError, match="'bags' was called with a 1-dimensional input and no offsets"):
        EmbeddingBagRule().jacobian(nn.EmbeddingBag(3, 2), call, torch.ones(1, 2, 2), NAMES)


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=str)
def test_what_has_no_exact_derivative_is_refused(option: Any) -> None:
    (name,) = option
    with pytest.raises(UnsupportedLayerError, match=rf"module '0' \(EmbeddingBag\): {name}="):
        LayerCollection.from_model(nn.Sequential(nn.EmbeddingBag(4, 3, **option)))


class FlatBags(nn.Module):
    """Passes its bags on as one list with offsets."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bags, self.head = nn.EmbeddingBag(5, 3, mode=mode), nn.Linear(3, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        offsets = torch.arange(0, tokens.numel(), tokens.shape[1])
        outputs: Tensor = self.head(torch.tanh(self.bags(tokens.flatten(), offsets)))
        return outputs


@pytest.mark.parametrize("mode", MODES)
def test_fisher_of_a_small_model(dense_fisher: Callable[..., Tensor], mode: str) -> None:
    x = torch.randint(5, (6, 4), generator=torch.Generator().manual_seed(0))
    for model in (
        nn.Sequential(nn.EmbeddingBag(5, 3, mode=mode), nn.Tanh(), nn.Linear(3, 2)).double(),
        FlatBags(mode).double(),
    ):
        expected = fisher(model, x, [name for name, _ in model.named_parameters()], "classif_logits")
        assert relative_error(dense_fisher(model, x, "classif_logits"), expected) <= 1e-10
