"""HooksGenerator: exact Jacobians and Fisher matrices, whatever the batches, the budget, the modes and the options."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nngeo_core import ClassifLogits, GaussianLikelihood, LayerCollection, Likelihood, ShapeError
from nngeo_core.likelihoods.targets import targets_of
from nngeo_core.testing import MODELS, Case, fisher, output_jacobian, relative_error
from nngeo_generators import HooksGenerator
from nngeo_generators.joining import Part
from nngeo_generators.trust import checked_state

Build = Callable[..., nn.Module]
Hooks = Callable[..., HooksGenerator]
DenseFisher = Callable[..., Tensor]

X = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()


def names(generator: HooksGenerator) -> list[str]:
    return [name for name, _ in generator.layer_collection.named_parameters(generator.model)]


def dense(generator: HooksGenerator, batch: Any, directions: slice | None = None) -> Tensor:
    sizes = {name: layer.numel() for name, layer in generator.layer_collection.items()}
    return generator.jacobian(batch, directions).to_dense(sizes)


@every_model
def test_the_jacobian_equals_autograd(make: Callable[[], Case], hooks: Hooks) -> None:
    case = make()
    generator = hooks(case.model)
    expected = output_jacobian(case.model, case.inputs, names(generator))
    assert relative_error(dense(generator, case.inputs), expected) < 1e-12


@every_model
@pytest.mark.parametrize("budget", [1, 20_000, None])
def test_fisher_matrices_for_any_budget(
    make: Callable[[], Case], budget: int | None, dense_fisher: DenseFisher
) -> None:
    case = make()
    parameters = LayerCollection.from_model(case.model).named_parameters(case.model)
    expected = fisher(case.model, case.inputs, [name for name, _ in parameters], "classif_logits")
    found = dense_fisher(case.model, case.inputs, "classif_logits", memory_budget=budget)
    assert relative_error(found, expected) < 1e-12


def slices(generator: HooksGenerator, batches: Any) -> list[tuple[int, tuple[int, int]]]:
    return [(b.n_examples, (b.directions.start, b.directions.stop)) for b in generator.stream(batches)]


def test_without_a_budget_small_batches_go_at_once(net: nn.Module, hooks: Hooks) -> None:
    assert slices(hooks(net), [X, X[:2]]) == [(9, (0, 5))]


def test_the_least_budget_takes_one_example_and_one_direction(net: nn.Module, hooks: Hooks) -> None:
    expected = [(1, (k, k + 1)) for _ in range(2) for k in range(5)]
    assert slices(hooks(net, memory_budget=1), [X[:2]]) == expected


@pytest.mark.parametrize(("directions", "cuts"), [(1, 5), (3, 2), (5, 1)])
def test_directions_are_cut_evenly(directions: int, cuts: int, net: nn.Module, hooks: Hooks) -> None:
    """An example takes 3 + 4 inputs, and for each direction 4 + 5 output gradients and twice 4 on their way, of 8 bytes."""
    found = slices(hooks(net, memory_budget=8 * (7 + 17 * directions)), [X[:1]])
    assert len(found) == cuts
    assert [k for _, (start, stop) in found for k in range(start, stop)] == list(range(5))


@pytest.mark.parametrize("budget", [8 * (7 + 9 * k) for k in (1, 3, 5, 10, 15)] + [None])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_results_do_not_depend_on_chunks(
    budget: int | None, size: int, net: nn.Module, dense_fisher: DenseFisher
) -> None:
    expected = fisher(net, X, [name for name, _ in net.named_parameters()], "classif_logits")
    found = dense_fisher(net, iter(X.split(size)), "classif_logits", memory_budget=budget)
    assert relative_error(found, expected) < 1e-13


def test_results_do_not_depend_on_the_order_of_the_loader(net: nn.Module, dense_fisher: DenseFisher) -> None:
    order = torch.randperm(7)
    found = dense_fisher(net, [(X[order[:3]],), (X[order[3:]],)])
    assert relative_error(found, dense_fisher(net, X)) < 1e-14


@pytest.mark.parametrize("directions", [slice(0, 1), slice(1, 4), slice(4, 5), slice(0, 5)], ids=str)
def test_directions_can_be_read_in_any_order(directions: slice, net: nn.Module, hooks: Hooks) -> None:
    generator = hooks(net)
    batch = generator.jacobian(X, directions)
    assert (batch.directions, batch.total_directions, batch.first_slice) == (directions, 5, directions.start == 0)
    assert relative_error(dense(generator, X, directions), dense(generator, X)[directions]) < 1e-15


@pytest.mark.parametrize("check", ["off", "first-batch", "every-batch"])
def test_the_check_changes_no_number(check: str, net: nn.Module, dense_fisher: DenseFisher) -> None:
    """Only the order of sums may differ: batches that are checked one by one are not put together."""
    found, expected = (dense_fisher(net, iter(X.split(3)), check=choice) for choice in (check, "off"))
    assert relative_error(found, expected) < 1e-14


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_results_serve_autograd_whatever_mode_the_caller_is_in(
    mode: Callable[[], Any], net: nn.Module, hooks: Hooks, dense_fisher: DenseFisher
) -> None:
    generator, outside = hooks(net), hooks(net)
    with mode():
        batch = generator.jacobian(X.clone())
    jacobian = batch.to_dense({"0": 16, "2": 25})
    assert not jacobian.is_inference() and not jacobian.requires_grad
    assert jacobian.equal(dense(outside, X))
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    (weight * jacobian).sum().backward()
    assert torch.allclose(weight.grad, jacobian.sum())


def test_loaders_in_inference_mode(net: nn.Module, dense_fisher: DenseFisher) -> None:
    expected = dense_fisher(net, X)
    with torch.inference_mode():
        found = dense_fisher(net, DataLoader(TensorDataset(X.clone()), batch_size=3))
    assert relative_error(found, expected) < 1e-14


LOADERS: dict[str, Callable[[], Any]] = {
    "one-tensor": lambda: X,
    "one-tuple": lambda: (X, torch.zeros(7)),
    "list-of-tuples": lambda: [(part,) for part in X.split(4)],
    "iterator": lambda: iter(X.split(4)),
    "with-empty-batches": lambda: [(X[:0],), (X[:5],), (X[5:5],), (X[5:],)],
    "data-loader": lambda: DataLoader(TensorDataset(X, torch.zeros(7)), batch_size=3),
    "shuffled": lambda: DataLoader(TensorDataset(X), batch_size=3, shuffle=True),
    "nested": lambda: [((part, part), torch.zeros(len(part))) for part in X.split(4)],
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_every_kind_of_loader(
    loader: Callable[[], Any], net: nn.Module, build: Build, dense_fisher: DenseFisher
) -> None:
    model = build(lambda self, x: self.net(x[0] if isinstance(x, tuple) else x), net=net)
    assert relative_error(dense_fisher(model, loader()), dense_fisher(net, X)) < 1e-13


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: SimpleNamespace(logits=y), lambda y: {"logits": y, "loss": 0}])
def test_mappings_and_outputs_with_logits(
    wrap: Callable[[Tensor], Any], net: nn.Module, build: Build, dense_fisher: DenseFisher
) -> None:
    """`model(**batch)` without its labels."""
    scale = torch.arange(1.0, 8, dtype=torch.float64)
    model = build(lambda self, inputs, scale: wrap(scale[:, None] * self.net(inputs)), net=net)
    batch = {"inputs": X, "scale": scale, "labels": torch.zeros(7)}
    found = dense_fisher(model, batch)
    scaled = output_jacobian(net, X, [name for name, _ in net.named_parameters()]) * scale[:, None]
    assert relative_error(found, torch.einsum("cni,cnj->ij", scaled, scaled) / 7) < 1e-13


FUNCTIONS: dict[str, tuple[Callable[[nn.Module], Callable[..., Tensor]], Any]] = {
    "tensor": (lambda net: lambda x: 2 * net(x), X),
    "tuple": (lambda net: lambda x, factor: factor * net(x), (X, torch.full((7, 1), 2.0, dtype=torch.float64))),
    "mapping": (lambda net: lambda batch: 2 * net(batch["x"]), {"x": X}),
}


@pytest.mark.parametrize(("make", "batch"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_of_the_batch(
    make: Callable[..., Any], batch: Any, net: nn.Module, dense_fisher: DenseFisher
) -> None:
    found = dense_fisher(net, batch, function=make(net))
    assert relative_error(found, 4 * dense_fisher(net, X)) < 1e-14


class Targeted(GaussianLikelihood):
    """Directions are the differences from the targets: the gradient of the loss."""

    def targets(self, examples: Any) -> Tensor:
        return targets_of(examples)

    def n_directions(self, outputs: Tensor, targets: Any = None) -> int:
        return 1

    def directions(self, outputs: Tensor, targets: Tensor | None, chosen: slice) -> Tensor:
        assert targets is not None
        return (outputs - targets).unsqueeze(0)


@pytest.mark.parametrize("form", ["tuple", "mapping"])
def test_targets_reach_the_likelihood(form: str, net: nn.Module, hooks: Hooks) -> None:
    targets = torch.randn(7, 5, dtype=torch.float64)
    batch = (X, targets) if form == "tuple" else {"input": X, "labels": targets}
    found = dense(hooks(net, Targeted()), batch)
    jacobian = output_jacobian(net, X, [name for name, _ in net.named_parameters()])
    expected = torch.einsum("nc,cnd->nd", net(X).detach() - targets, jacobian)
    assert relative_error(found[0], expected) < 1e-13


@pytest.mark.parametrize("batch", [X, (X,), {"input": X}], ids=["tensor", "tuple", "mapping"])
def test_a_batch_without_targets_is_refused(batch: Any, net: nn.Module, hooks: Hooks) -> None:
    with pytest.raises(ValueError) as error:
        hooks(net, Targeted()).jacobian(batch)
    assert str(error.value) == (
        f"this likelihood needs targets, and the batch has none: got {type(batch).__name__}, expected "
        "(inputs, targets) or a mapping with 'labels'"
    )


@pytest.mark.parametrize(
    ("likelihood", "directions"),
    [(GaussianLikelihood(), 5), (ClassifLogits(), 4)],
    ids=["regression", "classif_logits"],
)
def test_wrong_numbers_of_outputs_are_refused(
    likelihood: Likelihood, directions: int, net: nn.Module, hooks: Hooks
) -> None:
    with pytest.raises(ValueError, match="n_output=4 was given, and the model returns 5 outputs per example"):
        hooks(net, likelihood, n_output=4).jacobian(X)
    assert hooks(net, likelihood, n_output=5).jacobian(X).total_directions == directions


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda net: lambda x: net(x).sum(0, keepdim=True),
            ShapeError,
            r"has \d examples and the outputs have shape \(1, 5\)",
        ),
        (lambda net: lambda x: [net(x)], TypeError, "the model returned list, expected one tensor or an object with"),
        (
            lambda net: lambda x: {"loss": net(x)},
            TypeError,
            "the model returned dict, expected one tensor or an object",
        ),
    ],
)
def test_outputs_of_another_kind_are_refused(
    function: Callable[..., Any], error: type[Exception], message: str, net: nn.Module, hooks: Hooks
) -> None:
    with pytest.raises(error, match=message):
        hooks(net, function=function(net)).jacobian(X)


def test_an_empty_batch_has_an_empty_jacobian(net: nn.Module, hooks: Hooks) -> None:
    assert dense(hooks(net), X[:0]).shape == (5, 0, 41)


@pytest.mark.parametrize("empty", [[], [(X[:0],)], iter(())], ids=["list", "no-examples", "exhausted"])
def test_no_examples_are_refused(empty: list[Any] | Iterator[Any], net: nn.Module, dense_fisher: DenseFisher) -> None:
    with pytest.raises(ValueError, match="is empty; a matrix needs at least one example"):
        dense_fisher(net, empty)


class Bypass(nn.Module):
    """A linear layer that inputs of width two go around."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x) if x.shape[1] == 3 else x
        return outputs


def test_a_later_batch_that_reaches_no_parameter_has_derivative_zero(hooks: Hooks) -> None:
    model = Bypass().double()
    generator = hooks(model)
    assert len(generator.jacobian(X).layers) == 1
    assert generator.jacobian(X[:, :2]).layers == {}
    whole = sum(float(rows.square().sum()) for rows in (dense(generator, X), dense(generator, X[:, :2])))
    alone = float(dense(hooks(model), X).square().sum())
    assert whole == pytest.approx(alone, rel=1e-14)


def test_what_one_shape_takes_is_not_taken_for_another(hooks: Hooks) -> None:
    """A batch of several examples, then a single example of another shape: chunks come from its own."""
    model = nn.Linear(3, 2).double()
    generator = hooks(model, function=lambda x: model(x).flatten(1))
    v = next(iter(generator.stream([X.view(7, 1, 3)])))
    assert v.total_directions == 2
    generator._known.trust(generator_part(X.expand(2, 7, 3)[:, :4]), checked_state(model))
    (single,) = generator.stream([X[None]])
    assert (single.n_examples, single.total_directions) == (1, 14)
    assert list(generator._known._chunks.values())[-1].directions == 14


def generator_part(batch: Tensor) -> Part:
    return Part(batch, (0,) * len(batch))
