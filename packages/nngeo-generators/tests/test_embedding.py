"""The rule of embeddings."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nngeo_core import Call, LayerCollection, UnsupportedLayerError
from nngeo_core.testing import RuleCase, RuleContract
from nngeo_core.testing.jacobian_contract import agree
from nngeo_core.testing.oracles import fisher, relative_error
from nngeo_generators.rules.embedding import EmbeddingRule

NAMES = ("weight",)


def embedding(
    *shape: int, rows: int = 5, change: Callable[[Tensor], Tensor] = torch.clone, **options: Any
) -> Callable[[], RuleCase]:
    def build() -> RuleCase:
        index = torch.randint(rows, shape, generator=torch.Generator().manual_seed(0))
        return RuleCase(nn.Embedding(rows, 3, **options).double(), change(index))

    return build


class TestEmbeddingRule(RuleContract):
    rule = EmbeddingRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        return {
            "one-look-up": embedding(4),
            "sequence": embedding(4, 6),
            "as-many-look-ups-as-examples": embedding(4, 4),
            "several-axes": embedding(2, 3, 2),
            "rows-that-never-occur": embedding(3, 2, rows=20),
            "padding": embedding(4, 6, padding_idx=0),
            "padding-counted-from-the-end": embedding(4, 6, padding_idx=-1),
            "an-example-of-padding-alone": embedding(
                4, 3, padding_idx=2, change=lambda x: x.index_fill(0, torch.tensor(1), 2)
            ),
            "int32": embedding(4, 6, change=lambda x: x.int()),
            "transposed": embedding(6, 4, change=torch.t),
        }


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 4), max_size=3), st.integers(1, 6), st.integers(1, 3), st.booleans())
def test_any_geometry_equals_autograd(positions: list[int], rows: int, width: int, padding: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    module = nn.Embedding(rows, width, padding_idx=rows // 2 if padding else None).double()
    case = RuleCase(module, torch.randint(rows, (3, *positions), generator=generator))
    g = torch.randn(2, 3, *positions, width, dtype=torch.float64, generator=generator)
    agree(EmbeddingRule().jacobian(module, case.call, g, NAMES).to_dense(), case.autograd(g, NAMES), "to_dense")


def test_only_what_is_looked_up_is_stored() -> None:
    call = Call((torch.tensor([[0, 7, 7]]),), {}, "table")
    found = EmbeddingRule().jacobian(nn.Embedding(10**6, 2, padding_idx=0), call, torch.ones(1, 1, 3, 2), NAMES)
    assert (found.index.tolist(), found.rows) == ([[-1, 7, 7]], 10**6)


@pytest.mark.parametrize("shape", [(1, 4), (4,)])
def test_indices_without_an_axis_of_examples_were_looked_up_for_all(shape: tuple[int, ...]) -> None:
    positions, g = torch.arange(4).view(shape), torch.randn(2, 3, 4, 5)
    found = EmbeddingRule().jacobian(nn.Embedding(4, 5), Call((positions,), {}, "position"), g, NAMES)
    assert torch.equal(found.to_dense(), g.flatten(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_norm": 1.5}, r"max_norm=1.5 rescales rows .*; expected None: .* module.max_norm = None$"),
        ({"scale_grad_by_freq": True}, r"scale_grad_by_freq=True divides gradients by counts over the batch"),
        ({"sparse": True}, r"sparse=True makes gradients sparse tensors, .*: set module.sparse = False$"),
    ],
    ids=str,
)
def test_what_has_no_exact_derivative_is_refused(options: Any, message: str) -> None:
    model = nn.Sequential(nn.Embedding(4, 3, **options), nn.Linear(3, 2))
    with pytest.raises(UnsupportedLayerError, match=rf"module '0' \(Embedding\): {message}"):
        LayerCollection.from_model(model)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}], ids=str)
def test_fisher_of_a_small_model(dense_fisher: Callable[..., Tensor], options: Any) -> None:
    model = nn.Sequential(nn.Embedding(5, 3, **options), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
    x = torch.randint(5, (6, 4), generator=torch.Generator().manual_seed(0))
    expected = fisher(model, x, [name for name, _ in model.named_parameters()], "classif_logits")
    assert relative_error(dense_fisher(model, x, "classif_logits"), expected) <= 1e-10


class Tied(nn.Module):
    """A table that is also the output head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 5)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.head(torch.tanh(self.table(tokens)).sum(1))
        return outputs


def test_fisher_of_a_table_tied_to_the_output_head(dense_fisher: Callable[..., Tensor]) -> None:
    model, x = Tied().double(), torch.randint(5, (6, 4), generator=torch.Generator().manual_seed(0))
    expected = fisher(model, x, ["table.weight", "head.bias"], "classif_logits")
    assert relative_error(dense_fisher(model, x, "classif_logits"), expected) <= 1e-10
