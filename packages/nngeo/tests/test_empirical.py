"""EmpiricalFIM: second moments and covariances of per-example loss gradients, against a loop."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nngeo import EmpiricalFIM, Hessian, PMatDense, ShapeError, UnsupportedOperationError, populate, random_pvector
from nngeo_core.testing import relative_error


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def net(outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


X, LABELS = draw(6, 3), torch.tensor([0, 3, 1, 2, 2, 0])


def gradients(model: nn.Module, batch: tuple[Any, Any], loss: Any) -> Tensor:
    """One row for each example, shape (n, d)."""
    rows = []
    for x, y in zip(*batch, strict=True):
        value = loss(model(x[None]), y[None]).sum()
        found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows)


def cross_entropy(f: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(f, y, reduction="none")


def huber(f: Tensor, y: Tensor) -> Tensor:
    return F.huber_loss(f, y, reduction="none").sum(1)


CASES: dict[str, Any] = {
    "cross-entropy": (4, LABELS, cross_entropy, {"loss": cross_entropy}),
    "classif_logits": (4, LABELS, cross_entropy, {"variant": "classif_logits"}),
    "both": (4, LABELS, cross_entropy, {"variant": "classif_logits", "loss": cross_entropy}),
    "huber": (2, 2 * draw(6, 2, seed=1), huber, {"loss": huber}),
    "regression": (2, draw(6, 2, seed=1), lambda f, y: (f - y).square().sum(1) / 2, {"variant": "regression"}),
    "poisson": (
        2, draw(6, 2, seed=1).abs().round(), lambda f, y: F.poisson_nll_loss(f, y, reduction="none").sum(1),
        {"variant": "poisson"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("centred", [False, True], ids=["plain", "centred"])
@pytest.mark.parametrize("name", list(CASES))
def test_against_a_loop(name: str, centred: bool) -> None:
    outputs, y, loss, options = CASES[name]
    model = net(outputs)
    rows = gradients(model, (X, y), loss)
    rows = rows - rows.mean(0) if centred else rows
    expected = rows.T @ rows / 6
    loader = [(X[some], y[some]) for some in (slice(0, 1), slice(1, 4), slice(4, 6))]
    dense, blocks, diag = EmpiricalFIM(model, loader, ["dense", "blockdiag", "diag"], centred=centred, **options)
    assert relative_error(dense.get_dense_tensor(), expected) <= 1e-10
    assert relative_error(diag.get_diag(), expected.diagonal()) <= 1e-10
    assert relative_error(blocks.get_diag(), expected.diagonal()) <= 1e-10
    assert dense.n_examples == diag.n_examples == 6
    if not centred:
        v = random_pvector(dense.layer_collection, dtype=torch.float64)
        product = dense.generator.product(v, loader).get_flat_representation()
        assert relative_error(product, expected @ v.get_flat_representation()) <= 1e-10
        assert EmpiricalFIM(model, loader, "kfac", **options).trace() > 0


def test_positions_shared_inputs_and_tied_weights_are_centred_too() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3)
            self.hidden = nn.Conv1d(3, 3, 2)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.head(self.hidden(self.table(tokens).mT).tanh().mean(2))
            return out

    torch.manual_seed(0)
    model = Tied().double()
    tokens, y = torch.randint(0, 5, (6, 4)), torch.randint(0, 5, (6,))
    rows = gradients(model, (tokens, y), cross_entropy)
    rows = rows - rows.mean(0)
    found = EmpiricalFIM(model, (tokens, y), "diag", loss=cross_entropy, centred=True, memory_budget=1)
    assert relative_error(found.get_diag(), rows.square().mean(0)) <= 1e-10


def test_a_large_mean_gradient_does_not_cancel_in_float32() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    x, y = 1 + 1e-3 * torch.randn(50, 3), torch.full((50, 1), 30.0)
    rows = gradients(model.double(), (x.double(), y.double()), lambda f, y: (f - y).square().sum(1) / 2)
    expected = (rows - rows.mean(0)).square().mean(0)
    found = EmpiricalFIM(model.float(), (x, y), "diag", variant="regression", centred=True)
    assert relative_error(found.get_diag().double(), expected) <= 1e-2


@pytest.mark.parametrize("kind", ["kfac", "ekfac", "quasidiag", {"0": "quasidiag", None: "dense"}], ids=str)
def test_what_needs_the_structure_of_gradients_is_not_centred(kind: Any) -> None:
    with pytest.raises(UnsupportedOperationError, match="Accumulator cannot subtract the mean gradient"):
        EmpiricalFIM(net(), (X, LABELS), kind, variant="classif_logits", centred=True)


def test_a_causal_language_model_takes_the_next_token_as_target() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5)).double()
    tokens, real = torch.tensor([[1, 2, 3, 4], [4, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    rows = []
    for sequence, length in ((tokens[0], 4), (tokens[1], 2)):
        value = F.cross_entropy(model(sequence[None])[0, : length - 1], sequence[1:length], reduction="sum")
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))]))
    expected = torch.stack(rows).square().mean(0)
    batch = {"input_ids": tokens, "attention_mask": real}
    found = EmpiricalFIM(
        model, batch, "diag", variant="causal_lm_logits", function=lambda batch: model(batch["input_ids"])
    )
    assert relative_error(found.get_diag(), expected) <= 1e-10


def test_a_centred_matrix_stays_centred_when_it_is_updated_and_has_no_matrix_free_products() -> None:
    model, other = net(), (draw(5, 3, seed=4), torch.tensor([1, 1, 0, 3, 2]))
    centred = EmpiricalFIM(model, (X, LABELS), "dense", variant="classif_logits", centred=True)
    with pytest.raises(UnsupportedOperationError, match="do not subtract the mean gradient; use mv"):
        centred.generator.product(random_pvector(centred.layer_collection, dtype=torch.float64), other)
    parts = []
    for batch in ((X, LABELS), other):
        rows = gradients(model, batch, cross_entropy)
        rows = rows - rows.mean(0)
        parts.append(rows.T @ rows / len(rows))
    assert relative_error(PMatDense(centred.generator, examples=other).get_dense_tensor(), parts[1]) <= 1e-10
    centred.update(other, decay=0.75)
    assert relative_error(centred.get_dense_tensor(), 0.75 * parts[0] + 0.25 * parts[1]) <= 1e-10
    with pytest.raises(UnsupportedOperationError, match=r"subtracts a mean; give CentredAccumulator\(accumulator\)"):
        populate(centred.generator, other, [PMatDense.accumulator(centred.layer_collection)])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda f, y: cross_entropy(f, y) / len(f), "it depends on the other examples"),
        (lambda f, y: cross_entropy(f @ f.T @ f, y), "it depends on the other examples"),
        (lambda f, y: cross_entropy(f, y) * torch.rand(()), "or is random"),
        (lambda f, y: cross_entropy(f.detach(), y), "does not depend on the outputs by way of autograd"),
        (lambda f, y: cross_entropy(f, y).detach().numpy(), "the loss returned ndarray for"),
        (lambda f, y: cross_entropy(f, y)[:, None], r"returned shape \(6, 1\)"),
    ],
    ids=["divided", "mixing", "random", "detached", "numpy", "column"],
)
def test_losses_that_are_not_of_one_example_each(loss: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmpiricalFIM(net(), (X, LABELS), "diag", loss=loss)


def test_what_is_no_target_or_loss() -> None:
    model = net()
    with pytest.raises(ValueError, match="needs targets, and the batch has none"):
        EmpiricalFIM(model, X, "diag", variant="classif_logits")
    with pytest.raises(ValueError, match="give a `variant`.* or a `loss`"):
        EmpiricalFIM(model, (X, LABELS), "diag")
    with pytest.raises(ShapeError, match=r'expected \(.,\): one loss for each, .*reduction="none"'):
        EmpiricalFIM(model, (X, LABELS), "diag", loss=F.cross_entropy)
    with pytest.raises(ShapeError, match="a class for each position, integers"):
        EmpiricalFIM(model, (X, draw(6)), "diag", variant="classif_logits")
    with pytest.raises(ValueError, match="a target is class 7, and the model returns 4 classes"):
        EmpiricalFIM(model, (X, LABELS + 4), "diag", variant="classif_logits")
    with pytest.raises(ShapeError, match="targets are one tensor, or come with a `loss`"):
        EmpiricalFIM(model, [(X, (LABELS, LABELS))], "diag", variant="classif_logits")


def test_ignored_labels_have_no_gradient_and_impossible_ones_are_refused() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3).double(), torch.randn(8, 4).double(), torch.randint(0, 3, (8,))
    y[:4] = -100
    per_example = nn.CrossEntropyLoss(reduction="none")
    for compute in (EmpiricalFIM, Hessian):
        representation = "dense" if compute is EmpiricalFIM else "implicit"
        by_name, by_loss = (
            compute(model, (x, y), representation, **options).convert("dense").get_dense_tensor()
            for options in ({"variant": "classif_logits"}, {"loss": per_example})
        )
        assert relative_error(by_name, by_loss) <= 1e-12
    for label in (-1, 3):
        y[0] = label
        with pytest.raises(ValueError, match=f"a target is class {label}, and the model returns 3 classes"):
            EmpiricalFIM(model, (x, y), "dense", variant="classif_logits")


def test_a_loss_that_is_zero_for_the_last_example_is_compared_at_another() -> None:
    model, x, y = nn.Linear(4, 3).double(), torch.randn(20, 4).double(), torch.arange(20) % 3
    y[-1] = -100
    with pytest.raises(ValueError, match="depends on the other examples"):
        EmpiricalFIM(
            model, (x, y), "dense", loss=lambda o, t: nn.functional.cross_entropy(o, t, reduction="none") / len(o)
        )
