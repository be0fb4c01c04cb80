"""Kernels of an embedding and a head of one weight: every order, every pairing, padding, and several lengths."""

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import DenseJacobian, GramMatrix, IndexJacobian, KroneckerJacobian, KroneckerLayout, SumJacobian
from nngeo_core.testing import output_jacobian, relative_error
from nngeo_ntk.tied import structured_parts


class Tied(nn.Module):
    def __init__(self, padding: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=padding)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.inner(self.embed(tokens)).tanh())
        return logits[:, -1]


def tied(padding: int | None) -> nn.Module:
    torch.manual_seed(0)
    return Tied(padding).double()


@pytest.mark.parametrize("representation", ["dense", "blockdiag", "trace"])
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("budget", [None, 3000])
def test_every_order_gives_the_kernel(representation: str, padding: int | None, budget: int | None) -> None:
    model = tied(padding)
    batches = [(torch.randint(7, (n, length)),) for n, length in ((3, 5), (2, 5), (1, 1))]
    names = [name for name, _ in model.named_parameters()]
    rows = torch.cat([output_jacobian(model, tokens, names) for (tokens,) in batches], 1)
    expected = torch.einsum("cnd,kmd->cnkm", rows, rows)
    if representation != "dense":
        expected = torch.einsum("cncm->cnm", expected)
    expected = expected.mean(0) if representation == "trace" else expected
    for method in (None, "positions", "gradients", "products"):
        found = GramMatrix(model, batches, representation, method=method, memory_budget=budget)
        assert relative_error(found.data, expected) <= 1e-10  # type: ignore[attr-defined]


def test_only_a_table_and_products_by_it_have_such_terms() -> None:

    table = IndexJacobian(torch.zeros(2, 1, dtype=torch.int64), torch.ones(1, 2, 1, 4), 7)
    head = KroneckerJacobian(torch.ones(2, 1, 1, 4), torch.ones(1, 2, 1, 1, 7), KroneckerLayout(1, 7, 4, False))
    dense = DenseJacobian(torch.ones(1, 2, 28))
    stored_in_out = KroneckerJacobian(head.a, head.g, KroneckerLayout(1, 7, 4, False, 4))
    assert structured_parts(SumJacobian((table, head))) == (table, head)
    for other in (dense, stored_in_out):
        assert structured_parts(SumJacobian((table, other))) == ()
    assert structured_parts(table) == ()
