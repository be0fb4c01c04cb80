"""GGN: losses of the user's against J^T H J from plain autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nngeo import FIM, GGN, ShapeError, UnsupportedOperationError, random_pvector
from nngeo_core.testing import output_jacobian, relative_error

Loss = Callable[[Tensor, Any], Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def net(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


X, N = draw(6, 3), 6
LABELS = torch.tensor([0, 3, 1, 2, 2, 0])
SIGNS = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)


def smoothed(f: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(f, y, label_smoothing=0.1, reduction="none")


def huber(f: Tensor, y: Tensor) -> Tensor:
    return F.huber_loss(f, y, reduction="none", delta=0.5).sum(1)


def squared_hinge(f: Tensor, signs: Tensor) -> Tensor:
    return (1 - signs * f[:, 0]).clamp(min=0).square()


def expected_error(f: Tensor, y: Tensor) -> Tensor:
    """1 - p_y, which bends down where the model is unsure."""
    return 1 - (3 * f).softmax(1).gather(1, y[:, None])[:, 0]


def welsch(f: Tensor, y: Tensor) -> Tensor:
    """A robust loss that bends down far from its target."""
    return 1 - (-(f - y).square() / 2).exp().prod(1)


def pairwise(f: Tensor, y: dict[str, Tensor]) -> Tensor:
    """Targets may be any structure: a mixture of two labels, with a weight for each example."""
    return y["weight"] * (F.cross_entropy(f, y["first"], reduction="none") + f.logsumexp(1).square())


CASES: dict[str, tuple[Loss, Any, int, bool]] = {
    "label-smoothing": (smoothed, LABELS, 4, True),
    "huber": (huber, 2 * draw(6, 2, seed=1), 2, True),
    "squared-hinge": (squared_hinge, SIGNS, 1, True),
    "cross-entropy-of-a-structure": (pairwise, {"first": LABELS, "weight": draw(6, seed=2).abs()}, 4, True),
    "expected-error": (expected_error, LABELS, 4, False),
    "welsch": (welsch, 2 * draw(6, 2, seed=1), 2, False),
}


def cut(y: Any, some: slice) -> Any:
    return {key: part[some] for key, part in y.items()} if isinstance(y, dict) else y[some]


def hessians(loss: Loss, f: Tensor, y: Any) -> Tensor:
    one = [lambda row, i=i: loss(row[None], cut(y, slice(i, i + 1)))[0] for i in range(len(f))]
    return torch.stack([torch.autograd.functional.hessian(each, row) for each, row in zip(one, f, strict=True)])


def expected(model: nn.Module, loss: Loss, y: Any) -> Tensor:
    jacobian = output_jacobian(model, X, [name for name, _ in model.named_parameters()])
    curvature = hessians(loss, model(X).detach(), y)
    return torch.einsum("cna,nck,knb->ab", jacobian, curvature, jacobian) / N


def loader(y: Any) -> list[Any]:
    return [(X[some], cut(y, some)) for some in (slice(0, 1), slice(1, 4), slice(4, 6))]


@pytest.mark.parametrize("name", list(CASES))
def test_any_loss_of_the_outputs(name: str) -> None:
    loss, y, outputs, convex = CASES[name]
    model = net(outputs)
    exact = expected(model, loss, y)
    dense, blocks, diag = GGN(model, loader(y), ["dense", "blockdiag", "diag"], loss=loss)
    assert (torch.linalg.eigvalsh(exact)[0] < -1e-6) != convex
    assert relative_error(dense.get_dense_tensor(), exact) <= 1e-10
    assert relative_error(diag.get_diag(), exact.diagonal()) <= 1e-10
    block = dense.layer_collection.slices()["0"]
    assert relative_error(blocks.get_dense_tensor()[block, block], exact[block, block]) <= 1e-10
    v = random_pvector(dense.layer_collection, dtype=torch.float64)
    product = dense.generator.product(v, loader(y)).get_flat_representation()
    assert relative_error(product, exact @ v.get_flat_representation()) <= 1e-10
    for budget in (1, 3000):
        small = GGN(model, loader(y), "dense", loss=loss, memory_budget=budget)
        assert relative_error(small.get_dense_tensor(), exact) <= 1e-10
    if convex:
        assert GGN(model, loader(y), "kfac", loss=loss).trace() >= 0
    else:
        with pytest.raises(UnsupportedOperationError, match="convex in the outputs"):
            GGN(model, loader(y), "kfac", loss=loss)


def test_label_smoothing_has_the_curvature_of_cross_entropy() -> None:
    model = net(4)
    found, fisher = GGN(model, loader(LABELS), "dense", loss=smoothed), FIM(model, X, "dense")
    assert relative_error(found.get_dense_tensor(), fisher.get_dense_tensor()) <= 1e-12


@pytest.mark.parametrize("variant", ["classif_logits", "regression", "poisson"])
def test_without_a_loss_it_is_the_fisher_matrix(variant: str) -> None:
    model = net(4)
    found = GGN(model, X, "dense", variant=variant)
    assert relative_error(found.get_dense_tensor(), FIM(model, X, "dense", variant=variant).get_dense_tensor()) == 0


def test_a_linear_model_has_its_hessian() -> None:
    """The matrix is the Hessian of the mean loss where the outputs are linear in the parameters."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    hessian = torch.autograd.functional.hessian(lambda w: squared_hinge(X @ w[:3, None] + w[3], SIGNS).mean(), weights)
    assert relative_error(GGN(model, (X, SIGNS), "dense", loss=squared_hinge).get_dense_tensor(), hessian) <= 1e-12


def test_positions_that_do_not_count_are_left_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 1)).double()
    x, y = draw(2, 3, 5), torch.tensor([[0, 1, -100, 2, 3], [-100, -100, 1, 1, 0]])

    def loss(f: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(f, labels, reduction="none").sum(1)

    found = GGN(model, (x, y), "dense", variant="segmentation_logits", loss=loss)
    fisher = FIM(model, (x, y), "dense", variant="segmentation_logits")
    assert relative_error(found.get_dense_tensor(), fisher.get_dense_tensor()) <= 1e-10


def test_a_linear_loss_has_no_curvature() -> None:
    dense = GGN(net(2), (X, SIGNS), "dense", loss=lambda f, y: f.sum(1) * y)
    assert dense.get_dense_tensor().abs().max() == 0 and dense.n_examples == N


def test_what_is_no_loss() -> None:
    model, batch = net(4), (X, LABELS)
    with pytest.raises(ShapeError, match=r'returned shape \(\) for . examples, .*reduction="none"'):
        GGN(model, batch, "diag", loss=F.cross_entropy)
    with pytest.raises(ValueError, match="give a `variant`.* or a `loss`"):
        GGN(model, batch, "diag")
    with pytest.raises(TypeError, match="loss maps outputs and targets to one loss for each example.*got str"):
        GGN(model, batch, "diag", loss="cross_entropy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs targets, and the batch has none: got Tensor"):
        GGN(model, X, "diag", loss=smoothed)
    with pytest.raises(ArithmeticError, match="metric that LossCurvature puts on the outputs has a NaN"):
        GGN(model, batch, "diag", loss=lambda f, y: (f - f).norm(dim=1).sqrt())
    with pytest.raises(UnsupportedOperationError, match="the loss has no second derivative in torch"):
        GGN(model, batch, "diag", loss=lambda f, y: F.multi_margin_loss(f, y, reduction="none"))
