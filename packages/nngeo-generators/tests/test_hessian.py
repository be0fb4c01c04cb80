"""Products with the Hessian and its blocks, against torch.func in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.functional import cross_entropy

from nngeo_core import (
    LayerCollection,
    NNGeoError,
    NonFiniteError,
    PVector,
    ShapeError,
    UnsupportedLayerError,
)
from nngeo_core.testing import MODELS, Case, relative_error
from nngeo_core.testing.models import mlp
from nngeo_generators import HessianGenerator

Loss = Callable[[Tensor, Tensor], Tensor]
SMALL = ("mlp", "mlp-one-example", "mlp-one-parameter-layer", "mlp-frozen-bias", "conv-groups", "positions-sequence")
MORE = ("called-twice", "tied-weight-and-bias", "linear-one-layer")


def _double_well(outputs: Tensor, targets: Tensor) -> Tensor:
    """Not convex, and not a sum over outputs."""
    distance = (outputs - targets).square().flatten(1).sum(1)
    return (distance - 1).square() + outputs.flatten(1).prod(1)


def _targets(case: Case, variant: str) -> Tensor:
    outputs = case.model(case.inputs).detach()
    if variant == "classif_logits":
        return torch.arange(len(outputs)) % outputs.shape[1]
    return torch.sin(3 * outputs + 1)


def _oracle(model: nn.Module, layers: LayerCollection, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
    """The Hessian of the mean loss, from torch.func, in the order of the collection."""
    named = {name: parameter.detach() for name, parameter in layers.named_parameters(model)}
    sizes = [parameter.numel() for parameter in named.values()]

    def mean(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        values = {name: part.view_as(named[name]) for name, part in zip(named, parts, strict=True)}
        outputs = functional_call(model, values, (x,))
        return loss(outputs, y).mean()

    found: Tensor = jacrev(jacrev(mean))(torch.cat([part.flatten() for part in named.values()]))
    return found


LOSSES: dict[str, tuple[str, Loss | None, Loss]] = {
    "classif_logits": ("classif_logits", None, lambda outputs, y: cross_entropy(outputs, y, reduction="none")),
    "regression": ("regression", None, lambda outputs, y: (outputs - y).square().flatten(1).sum(1) / 2),
    "double-well": ("regression", _double_well, _double_well),
}


@pytest.mark.parametrize("model", [*SMALL, *MORE])
@pytest.mark.parametrize("loss", LOSSES)
def test_products_and_blocks(model: str, loss: str) -> None:
    case, (variant, given, plain) = MODELS[model](), LOSSES[loss]
    batch = (case.inputs, _targets(case, variant))
    generator = HessianGenerator(case.model, variant, loss=given)
    layers = generator.layer_collection
    expected = _oracle(case.model, layers, plain, *batch)
    v = torch.randn(layers.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vector = PVector(layers, v)
    assert relative_error(generator.product(vector, batch).get_flat_representation(), expected @ v) <= 1e-12
    assert relative_error(generator.quadratic_form(vector, batch), v @ expected @ v) <= 1e-11
    (whole,) = generator.blocks([slice(0, layers.numel())], batch)
    assert relative_error(whole, expected) <= 1e-12
    for place, block in zip(
        layers.slices().values(), generator.blocks(list(layers.slices().values()), batch), strict=True
    ):
        assert (block - expected[place, place]).norm() <= 1e-12 * expected.norm()


def test_neither_batches_nor_memory_matter() -> None:
    case = mlp(n_examples=7)
    x, y = case.inputs, _targets(case, "regression")
    whole = HessianGenerator(case.model, "regression", loss=_double_well)
    small = HessianGenerator(case.model, "regression", loss=_double_well, memory_budget=1)
    places = [slice(3, 11)]
    expected = whole.blocks(places, (x, y))[0]
    for generator in (whole, small):
        for examples in ((x, y), [(x[:2], y[:2]), (x[:0], y[:0]), (x[2:], y[2:])]):
            assert relative_error(generator.blocks(places, examples)[0], expected) <= 1e-12


class _Padded(nn.Module):
    """Outputs (n, T, 3) from tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.table(tokens).tanh())
        return found


def test_positions_that_do_not_count_are_left_out() -> None:
    torch.manual_seed(0)
    model = _Padded().double()
    tokens, labels = torch.tensor([[1, 2, 0], [3, 4, 1]]), torch.tensor([[0, 1, -100], [2, -100, 1]])
    generator = HessianGenerator(model, "segmentation_logits", function=lambda x, y: model(x).movedim(2, 1))

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(outputs.movedim(2, 1), y, reduction="none").sum(1)

    expected = _oracle(model, generator.layer_collection, loss, tokens, labels)
    (whole,) = generator.blocks([slice(0, len(expected))], (tokens, labels))
    assert relative_error(whole, expected) <= 1e-12


def test_attention_is_differentiated_twice() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True).double().eval()
    x, y = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y).square().sum((1, 2))

    generator = HessianGenerator(model, "regression", loss=loss)
    d = generator.layer_collection.numel()
    v = torch.randn(d, dtype=torch.float64)
    place = slice(0, d)
    (whole,) = generator.blocks([place], (x, y))
    product = generator.product(PVector(generator.layer_collection, v), (x, y)).get_flat_representation()
    assert relative_error(product, whole @ v) <= 1e-12
    parameters = [p for _, p in generator.layer_collection.named_parameters(model)]
    step = 1e-4 * v / v.norm()
    slopes = []
    for sign in (1, -1):
        PVector(generator.layer_collection, sign * step).add_to_model(model)
        gradient = torch.autograd.grad(loss(model(x), y).mean(), parameters)
        slopes.append(torch.cat([part.flatten() for part in gradient]))
        PVector(generator.layer_collection, -sign * step).add_to_model(model)
    assert relative_error(product, (slopes[0] - slopes[1]) / 2e-4 * v.norm()) <= 1e-6


def test_a_linear_loss_of_a_linear_model_has_none() -> None:
    case = mlp(widths=(2, 1))
    generator = HessianGenerator(case.model, "regression", loss=lambda outputs, y: outputs.sum(1))
    (whole,) = generator.blocks([slice(0, 3)], (case.inputs, case.inputs))
    assert torch.equal(whole, torch.zeros(3, 3, dtype=torch.float64))


class _Loss(torch.autograd.Function):
    """a b, whose backward pass is differentiable in one factor alone."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        ctx.constant = b.detach()
        return a * b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (a,) = ctx.saved_tensors
        return gradient * ctx.constant, gradient * a


class _Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 1).double(), nn.Linear(2, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Loss.apply(self.first(x), self.second(x))  # type: ignore[no-untyped-call]
        return found


def test_what_has_no_exact_hessian_is_refused() -> None:
    x, y = torch.ones(3, 2).double(), torch.ones(3, 1).double()
    with pytest.raises(NNGeoError, match="not symmetric.* custom autograd function or of torch.s own weight_norm"):
        HessianGenerator(_Product(), "regression").blocks([slice(0, 6)], (x, y))
    mixing = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)).double()
    with pytest.raises(UnsupportedLayerError, match=r"statistics of the batch.*call model.eval\(\)"):
        HessianGenerator(mixing, "regression").blocks([slice(0, 3)], (x, y))
    linear = nn.Linear(2, 1).double()
    centred = HessianGenerator(linear, "regression", function=lambda x, y: linear(x) - linear(x).mean())
    with pytest.raises(UnsupportedLayerError, match="mixes examples"):
        centred.blocks([slice(0, 3)], (x * torch.arange(3).double()[:, None], y))
    with pytest.raises(ShapeError, match="one loss for each"):
        HessianGenerator(linear, "regression", loss=lambda o, t: (o - t).square().mean()).blocks([slice(0, 3)], (x, y))


def test_errors_say_what_is_missing() -> None:
    case = mlp()
    generator = HessianGenerator(case.model, "classif_logits")
    v = PVector(generator.layer_collection, torch.ones(generator.layer_collection.numel(), dtype=torch.float64))
    with pytest.raises(ValueError, match="needs targets, and the batch has none"):
        generator.product(v, case.inputs)
    with pytest.raises(ValueError, match="no examples"):
        generator.product(v, [])
    with pytest.raises(ValueError, match="no examples"):
        generator.blocks([slice(0, 2)], [])
    kinked = HessianGenerator(case.model, "regression", loss=lambda outputs, y: (outputs - outputs).sqrt().sum(1))
    with pytest.raises(NonFiniteError, match="M v has a NaN or an infinity"):
        kinked.product(v, (case.inputs, case.inputs))


def test_the_model_is_left_as_it_was() -> None:
    case = mlp()
    before = [p.detach().clone() for p in case.model.parameters()]
    flags, state = [p.requires_grad for p in case.model.parameters()], torch.get_rng_state()
    generator = HessianGenerator(case.model, "regression")
    with torch.inference_mode():
        generator.blocks([slice(0, 4)], (case.inputs, _targets(case, "regression")))
    assert all(p.grad is None and torch.equal(p, q) for p, q in zip(case.model.parameters(), before, strict=True))
    assert [p.requires_grad for p in case.model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), state)
