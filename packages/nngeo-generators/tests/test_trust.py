"""What is refused, by name: models without a derivative of one example, and layers whose calls do not show it all."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nngeo_core import ClassifLogits, LayerCollection, NonFiniteError, UnsupportedLayerError, random_pvector
from nngeo_core.testing import fisher_directions, output_jacobian, relative_error
from nngeo_generators import HooksGenerator

Build = Callable[..., nn.Module]
Hooks = Callable[..., HooksGenerator]

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3).sin()


def refusal(model: nn.Module, x: Any = X, **options: Any) -> str:
    with pytest.raises(UnsupportedLayerError) as error:
        HooksGenerator(model, ClassifLogits(), **options).jacobian(x)
    return str(error.value)


BATCH_STATISTICS = (
    "normalises with the statistics of the batch, so no derivative of one example exists; call model.eval() first"
)


def test_batch_norm_in_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False)).double()
    assert refusal(model) == f"'1' (BatchNorm1d) {BATCH_STATISTICS}"


def test_batch_norm_is_refused_wherever_it_stands(build: Build) -> None:
    """Also when its parameters are not in the collection."""
    model = build(lambda net, x: net.head(net.norm(x)), norm=nn.BatchNorm1d(3), head=nn.Linear(3, 2))
    layers = LayerCollection()
    layers.add_layer_from_model(model, model.head)
    assert refusal(model, layer_collection=layers) == f"'norm' (BatchNorm1d) {BATCH_STATISTICS}"


def test_batch_norm_without_running_statistics_is_refused_in_evaluation_too() -> None:
    norm = nn.BatchNorm1d(2, affine=False, track_running_stats=False)
    message = refusal(nn.Sequential(nn.Linear(3, 2), norm).double().eval())
    assert message == f"'1' (BatchNorm1d) {BATCH_STATISTICS}, and give it running statistics"


def test_batch_norm_in_evaluation_mode_is_fine(hooks: Hooks) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False)).double().eval()
    assert hooks(model).jacobian(X).layers["0"].shape == (2, 4, 8)


@pytest.mark.parametrize("dropout", [nn.Dropout(0.1), nn.AlphaDropout(0.1), nn.FeatureAlphaDropout(0.1)], ids=repr)
def test_dropout_in_training_mode_is_refused(dropout: nn.Module) -> None:
    assert refusal(nn.Sequential(nn.Linear(3, 2), dropout).double()) == (
        f"'1' ({type(dropout).__name__}) drops units at random in training mode, so two calls differ; call model.eval() first"
    )


@pytest.mark.parametrize("model", [nn.Dropout(0.0), nn.Dropout(0.5).eval()], ids=repr)
def test_dropout_that_drops_nothing_is_fine(model: nn.Module, hooks: Hooks) -> None:
    assert hooks(nn.Sequential(nn.Linear(3, 2).double(), model)).jacobian(X).n_examples == 4


def test_dropout_that_begins_between_two_products_is_refused(hooks: Hooks) -> None:
    dropout = nn.Dropout(0.0)
    generator = hooks(nn.Sequential(nn.Linear(3, 2), dropout).double())
    v = random_pvector(generator.layer_collection, dtype=torch.float64)
    generator.product(v, X)
    dropout.p = 0.5
    with pytest.raises(UnsupportedLayerError, match="drops units at random"):
        generator.product(v, X)


def test_losing_running_statistics_between_two_products_is_refused(hooks: Hooks) -> None:
    norm = nn.BatchNorm1d(2, affine=False)
    generator = hooks(nn.Sequential(nn.Linear(3, 2), norm).double().eval())
    v = random_pvector(generator.layer_collection, dtype=torch.float64)
    generator.product(v, X)
    norm.running_mean = norm.running_var = None
    with pytest.raises(UnsupportedLayerError, match="give it running statistics"):
        generator.product(v, X)


@pytest.mark.parametrize(
    "random", [lambda h: F.dropout(h, 0.5), lambda h: h + torch.rand_like(h)], ids=["dropout", "noise"]
)
def test_random_numbers_are_refused(random: Callable[[Tensor], Tensor], build: Build) -> None:
    message = refusal(build(lambda net, x: random(net.a(x)), a=nn.Linear(3, 2)))
    assert message.startswith(
        "two forward passes over the same examples give different outputs: the model draws random"
    )


@pytest.mark.parametrize("mix", [lambda h: h - h.mean(0), lambda h: h.cumsum(0), lambda h: h / h.norm()])
def test_mixing_examples_is_refused(mix: Callable[[Tensor], Tensor], build: Build) -> None:
    message = refusal(build(lambda net, x: mix(net.a(x)), a=nn.Linear(3, 2)))
    assert message.startswith("an example's outputs differ with the others in its batch: the model mixes examples")


def rounded(outputs: Tensor) -> Tensor:
    """In float32, outputs off by as much as a batch's size says, as differences of nearly equal logits are by rounding."""
    return outputs + 1e-3 * len(outputs) if outputs.dtype == torch.float32 else outputs


def in_float32(build: Build, forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    return build(forward, first=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), last=nn.Linear(4, 2)).float().eval()


def logits(net: Any, x: Tensor) -> Tensor:
    found: Tensor = net.last(net.norm(net.first(x)))
    return found


def test_outputs_that_differ_by_rounding_alone_mix_nothing(build: Build) -> None:
    model = in_float32(build, lambda net, x: rounded(logits(net, x)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = HooksGenerator(model, "regression")
    layers = generator.layer_collection
    found = generator.jacobian(X.float()).to_dense({name: layer.numel() for name, layer in layers.items()})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    names = [name for name, _ in layers.named_parameters(model)]
    assert relative_error(found, output_jacobian(model, X.float(), names)) < 1e-5


@pytest.mark.parametrize("mix", [lambda f: f - f.mean(0), lambda f: f.cumsum(0)], ids=["mean", "sum"])
def test_mixing_them_is_refused_all_the_same(mix: Callable[[Tensor], Tensor], build: Build) -> None:
    model = in_float32(build, lambda net, x: mix(rounded(logits(net, x))))
    assert "the model mixes examples" in refusal(model, X.float())


def test_outputs_as_wide_as_the_batch_are_refused(build: Build) -> None:
    model = in_float32(build, lambda net, x: torch.cat([logits(net, x) @ logits(net, x).T, x], 1))
    assert "the model mixes examples" in refusal(model, X.float())


def test_integers_as_they_lie_in_memory_are_told_from_mixing_too(build: Build) -> None:
    model = build(lambda net, x: rounded(net.a(x.view(-1)).view(len(x), -1)), a=nn.Embedding(3, 2)).float()
    tokens = torch.arange(8).view(4, 2) % 3
    assert HooksGenerator(model, "regression").jacobian(tokens).n_examples == 4


def insists(x: Tensor) -> Tensor:
    assert x.dtype == torch.float32
    return x


@pytest.mark.parametrize("inner", [Tensor.float, insists], ids=["casts", "asserts"])
def test_what_cannot_run_in_float64_is_refused(inner: Callable[[Tensor], Tensor], build: Build) -> None:
    model = in_float32(build, lambda net, x: rounded(net.last(inner(net.first(x)))))
    assert "the model mixes examples" in refusal(model, X.float())


def test_not_a_number_in_float64_is_no_agreement(build: Build) -> None:
    def mixes(net: Any, x: Tensor) -> Tensor:
        found = logits(net, x)
        return found - found.mean(0) if x.dtype == torch.float32 else found * math.nan

    model = in_float32(build, mixes)
    generator = HooksGenerator(model, "regression")
    v = random_pvector(generator.layer_collection)
    with pytest.raises(UnsupportedLayerError, match="the model mixes examples"):
        generator.jvp(v, X.float())


def test_mixing_is_found_when_the_first_batch_has_one_example(
    build: Build, dense_fisher: Callable[..., Tensor]
) -> None:
    model = build(lambda net, x: net.a(x) - net.a(x).mean(0), a=nn.Linear(3, 2))
    with pytest.raises(UnsupportedLayerError, match="the model mixes examples"):
        dense_fisher(model, [X[:1], X[1:]])


def assert_exact(model: nn.Module, x: Tensor = X) -> None:
    """The Fisher matrix of each example is that of plain autograd."""
    generator = HooksGenerator(model, ClassifLogits())
    layers = generator.layer_collection
    dense = generator.jacobian(x).to_dense({name: layer.numel() for name, layer in layers.items()})
    names = [name for name, _ in layers.named_parameters(model)]
    outputs, jacobian = model(x), output_jacobian(model, x, names)
    directions = fisher_directions(outputs.detach(), "classif_logits")
    expected = torch.einsum("knc,cnd->knd", directions, jacobian)
    assert relative_error(of_each_example(dense), of_each_example(expected)) < 1e-12


def of_each_example(rows: Tensor) -> Tensor:
    """Products of the rows (c, n, d) of a Jacobian, summed over the directions, shape (n, d, d)."""
    return torch.einsum("cnd,cne->nde", rows, rows)


def test_examples_in_another_order_inside_the_model_are_found(build: Build) -> None:
    """Each layer alone would have the right sums; the products of two layers would pair different examples."""
    assert_exact(build(lambda net, x: net.b(net.a(x.flip(0)).tanh().flip(0)), a=nn.Linear(3, 4), b=nn.Linear(4, 2)))


def test_a_weight_used_outside_its_modules_call_too(build: Build) -> None:
    assert_exact(
        build(lambda net, x: F.linear(net.a(x).tanh(), net.b.weight) + net.b(x), a=nn.Linear(3, 3), b=nn.Linear(3, 2))
    )


def test_a_weight_of_a_module_that_is_never_called(build: Build) -> None:
    assert_exact(build(lambda net, x: F.linear(net.a(x).tanh(), net.b.weight), a=nn.Linear(3, 3), b=nn.Linear(3, 2)))


def test_a_penalty_on_a_weight_inside_the_model(build: Build) -> None:
    assert_exact(build(lambda net, x: net.a(x) + net.a.weight.square().sum() * x[:, :2], a=nn.Linear(3, 2)))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_patched_forward(when: str, build: Build, hooks: Hooks) -> None:
    """Patched before or after the generator chose its rules."""
    model = build(lambda net, x: net.a(x), a=nn.Linear(3, 2))

    def patch() -> None:
        model.a.forward = lambda x: 2 * F.linear(x, model.a.weight, model.a.bias)

    if when == "before":
        patch()
    generator = hooks(model)
    patch()
    found = generator.jacobian(X).layers["a"].to_dense()
    assert relative_error(found, output_jacobian(model, X, ["a.weight", "a.bias"])) < 1e-12


def test_a_small_difference_in_a_small_layer_is_still_found(build: Build) -> None:
    """The tolerance is the root of a rounding unit, relative to the whole gradient."""
    model = build(lambda net, x: net.a(x) + 1e-5 * F.linear(x, net.b.weight), a=nn.Linear(3, 2), b=nn.Linear(3, 2))
    generator = HooksGenerator(model, ClassifLogits())
    expected = output_jacobian(model, X, ["b.weight", "b.bias"])
    directions = fisher_directions(model(X).detach(), "classif_logits")
    found = generator.jacobian(X).layers["b"].to_dense()
    rows = torch.einsum("knc,cnd->knd", directions, expected)
    assert relative_error(of_each_example(found), of_each_example(rows)) < 1e-12


def test_a_parameter_kept_where_it_cannot_be_replaced_is_refused(build: Build) -> None:
    """A plain list of parameters: running the model again with others would miss that use."""
    model = build(lambda net, x: F.linear(net.a(x).tanh(), net.kept[0]), a=nn.Linear(3, 3), b=nn.Linear(3, 2))
    model.kept = [model.b.weight]
    message = refusal(model)
    assert message.startswith(
        "layer 'b' has no exact derivative here, not even from the whole model on single examples: "
    )
    assert "its parameters are used outside the module's call (as in F.linear(h, module.weight))" in message


def test_a_model_that_changes_its_inputs_is_refused(build: Build) -> None:
    message = refusal(build(lambda net, x: net.a(x.mul_(2)), a=nn.Linear(3, 2)), X.clone())
    assert message.startswith("the model changes its inputs in place, so that every pass sees others")


def test_the_check_can_be_left_out(build: Build, hooks: Hooks) -> None:
    model = build(lambda net, x: F.linear(net.a(x), net.b.weight), a=nn.Linear(3, 3), b=nn.Linear(3, 2))
    assert set(hooks(model, check="off").jacobian(X).layers) == {"a"}


@pytest.mark.parametrize(("check", "exact"), [("first-batch", False), ("every-batch", True)])
def test_every_batch_is_checked_on_request(check: str, exact: bool, build: Build, hooks: Hooks) -> None:
    """The second batch takes another way through the model, with calls of the same shapes."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return h + F.linear(x, net.a.weight) if x.sum() > 100 else h

    model = build(forward, a=nn.Linear(3, 2))
    first, second = hooks(model, check=check).stream([(X, "first"), (X + 100, "second")])
    expected = output_jacobian(model, X + 100, ["a.weight", "a.bias"])
    assert first.n_examples == 4
    assert (relative_error(second.layers["a"].to_dense(), expected) < 1e-12) == exact


def test_a_later_batch_whose_calls_have_other_shapes_is_examined_again(build: Build, hooks: Hooks) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.b(net.a(x) if x.sum() < 100 else net.a(x.flatten(0, 1)).unflatten(0, x.shape[:2])).mean(1)

    x = torch.stack([X, X.sin()])
    model = build(forward, a=nn.Linear(3, 3), b=nn.Linear(3, 2))
    generator = hooks(model)
    for batch, found in zip([x, x + 100], generator.stream([(x, "first"), (x + 100, "second")]), strict=True):
        dense = found.to_dense({name: layer.numel() for name, layer in generator.layer_collection.items()})
        expected = output_jacobian(model, batch, [name for name, _ in model.named_parameters()])
        assert relative_error(dense, expected) < 1e-12


def test_the_check_is_made_again_when_parameters_change(build: Build, hooks: Hooks) -> None:
    model = build(
        lambda net, x: net.a(x) + net.b.bias.sum() * F.linear(x, net.a.weight), a=nn.Linear(3, 2), b=nn.Linear(1, 1)
    )
    layers = LayerCollection()
    layers.add_layer_from_model(model, model.a)
    nn.init.zeros_(model.b.bias)
    generator = hooks(model, layer_collection=layers)
    for fill in (nn.init.zeros_, nn.init.ones_):
        fill(model.b.bias)
        found = generator.jacobian(X).layers["a"].to_dense()
        assert relative_error(found, output_jacobian(model, X, ["a.weight", "a.bias"])) < 1e-12


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_name_batch_and_module(bad: float, hooks: Hooks) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Softplus(), nn.Linear(3, 2)).double()
    wrong = X.clone()
    wrong[1, 2] = bad
    with pytest.raises(NonFiniteError) as error:
        list(hooks(model).stream([(X,), (X,), (wrong,)]))
    assert str(error.value) == (
        "batch 2: the model's outputs have a NaN or an infinity; the first module to return one is '0' (Linear)"
    )


def test_the_first_module_is_the_one_that_made_it(hooks: Hooks, build: Build) -> None:
    log = build(lambda net, x: (x - x).log())
    model = nn.Sequential(nn.Linear(3, 3).double(), log, nn.Linear(3, 2).double())
    with pytest.raises(NonFiniteError, match=r"batch 0: .* the first module to return one is '1' \(FunctionalNet\)"):
        hooks(model).jacobian(X)


def test_outputs_spoiled_by_the_model_itself(hooks: Hooks, build: Build) -> None:
    with pytest.raises(NonFiniteError, match="the first module to return one is the model itself"):
        hooks(build(lambda net, x: net.a(x) / 0, a=nn.Linear(3, 2))).jacobian(X)


@pytest.mark.parametrize("check", ["first-batch", "off"])
def test_a_gradient_that_is_not_finite_names_the_layer(check: str, hooks: Hooks, build: Build) -> None:
    """sqrt(0 h): outputs zero, derivative 0 times infinity."""
    model = build(lambda net, x: (0 * net.a(x)).sqrt(), a=nn.Linear(3, 2))
    with pytest.raises(NonFiniteError) as error:
        hooks(model, check=check).jacobian(X)
    assert str(error.value) == "the derivative with respect to the output of 'a' has a NaN or an infinity"


def test_a_masked_nan_is_named_as_such(hooks: Hooks, build: Build) -> None:
    model = build(lambda net, x: net.a(x).nan_to_num(), a=nn.Linear(3, 2))
    wrong = X.clone()
    wrong[3, 0] = float("nan")
    with pytest.raises(
        NonFiniteError, match="the gradient of layer 'a' has a NaN or an infinity, though the outputs are"
    ):
        hooks(model).jacobian(wrong)


def test_large_finite_gradients_are_not_refused(hooks: Hooks, build: Build) -> None:
    """Their sum overflows, each of them does not."""
    model = build(lambda net, x: 1.5e308 * net.a(x), a=nn.Linear(3, 2, bias=False))
    nn.init.constant_(model.a.weight, 1e-300)
    with torch.no_grad():
        found = hooks(model, check="off").jacobian(1e-3 * X.abs()).layers["a"].to_dense()
    assert found.isfinite().all() and found.max() > 1e304


def test_small_precision_is_compared_with_its_own_tolerance(hooks: Hooks) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).bfloat16()
    found = hooks(model).jacobian(X.bfloat16())
    dense = found.layers["2"].to_dense()
    hidden = model[:2](X.bfloat16()).float()
    assert found.dtype == dense.dtype == torch.float32
    assert relative_error(dense[0, :, :8], hidden) < 1e-6


class Ragged(nn.Module):
    """Uses a weight outside its module's call, in long batches only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        if x.shape[1] > 4:
            return F.linear(h, self.b.weight, self.b.bias).mean(1)
        return self.b(h).mean(1)


def test_batches_of_another_shape_are_examined_too() -> None:
    from nngeo_core.testing import fisher

    torch.manual_seed(0)
    model = Ragged().double()
    batches = [torch.randn(3, length, 3, dtype=torch.float64) for length in (4, 6, 4)]
    generator = HooksGenerator(model, ClassifLogits())
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for batch in generator.stream(batches):
            total = total + sum(layer.squared_norm() for layer in batch.layers.values())
    names = [name for name, _ in generator.layer_collection.named_parameters(model)]
    expected = sum(len(x) * fisher(model, x, names, "classif_logits").trace() for x in batches)
    assert relative_error(total, torch.as_tensor(expected)) <= 1e-10
