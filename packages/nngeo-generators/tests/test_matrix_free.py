"""J v, J^T u and F v with nothing stored, against the dense matrices of the oracles."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import (
    ClassifLogits,
    FVector,
    GaussianLikelihood,
    LayerCollection,
    LayerCollectionMismatchError,
    NonFiniteError,
    PVector,
    ShapeError,
    UnsupportedLayerError,
    random_fvector,
    random_pvector,
)
from nngeo_core.testing import MODELS, Case, fisher, output_jacobian, relative_error
from nngeo_generators import HooksGenerator

Build = Callable[..., nn.Module]
Hooks = Callable[..., HooksGenerator]

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3).sin()
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def draw(generator: HooksGenerator, dtype: torch.dtype = torch.float64) -> PVector:
    return random_pvector(generator.layer_collection, dtype=dtype, generator=torch.Generator().manual_seed(1))


def names(generator: HooksGenerator) -> list[str]:
    return [name for name, _ in generator.layer_collection.named_parameters(generator.model)]


@every_model
def test_push_forward_and_pull_back(make: Callable[[], Case], hooks: Hooks) -> None:
    case = make()
    generator = hooks(case.model)
    jacobian, v = output_jacobian(case.model, case.inputs, names(generator)), draw(generator)
    c, n, _ = jacobian.shape
    u = random_fvector(n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pushed, pulled = generator.jvp(v, case.inputs), generator.vjp(u, case.inputs)
    assert relative_error(pushed.vector_repr, jacobian @ v.get_flat_representation()) < 1e-12
    expected = torch.einsum("cn,cnd->d", u.vector_repr, jacobian)
    assert relative_error(pulled.get_flat_representation(), expected) < 1e-12


@every_model
@pytest.mark.parametrize("likelihood", [ClassifLogits(), GaussianLikelihood()], ids=lambda kind: kind.name)
def test_fisher_product(make: Callable[[], Case], likelihood: ClassifLogits, hooks: Hooks) -> None:
    case = make()
    generator = hooks(case.model, likelihood)
    v, expected = draw(generator), fisher(case.model, case.inputs, names(generator), likelihood.name)
    product = generator.product(v, case.inputs).get_flat_representation()
    form = HooksGenerator(case.model, likelihood).quadratic_form(v, case.inputs)
    assert form.ndim == 0
    assert relative_error(form, v.get_flat_representation() @ expected @ v.get_flat_representation()) < 1e-12
    assert relative_error(product, expected @ v.get_flat_representation()) < 1e-12


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [3, 1], [0, 2, 0, 2]], ids=str)
def test_results_do_not_depend_on_the_batches(sizes: list[int], hooks: Hooks) -> None:
    generator = hooks(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), ClassifLogits())
    v, u, loader = draw(generator), random_fvector(4, 2, dtype=torch.float64), [(part,) for part in X.split(sizes)]
    pairs = [
        (generator.jvp(v, loader).vector_repr, generator.jvp(v, X).vector_repr),
        (generator.vjp(u, loader).get_flat_representation(), generator.vjp(u, X).get_flat_representation()),
        (
            generator.product(v, iter(loader)).get_flat_representation(),
            generator.product(v, X).get_flat_representation(),
        ),
    ]
    assert max(relative_error(found, expected) for found, expected in pairs) < 1e-14


def test_several_output_axes_are_one(build: Build, hooks: Hooks) -> None:
    """The c of a function-space vector is the product of the output axes, row-major."""

    class AnyShape(GaussianLikelihood):
        def check(self, outputs: Tensor) -> None:
            pass

    model = build(lambda net, x: net.a(x).view(-1, 2, 3), a=nn.Linear(3, 6))
    generator = hooks(model, AnyShape())
    jacobian, v = output_jacobian(model, X, names(generator)), draw(generator)
    u = random_fvector(4, 6, dtype=torch.float64)
    assert relative_error(generator.jvp(v, X).vector_repr, jacobian @ v.get_flat_representation()) < 1e-14
    expected = torch.einsum("cn,cnd->d", u.vector_repr, jacobian)
    assert relative_error(generator.vjp(u, X).get_flat_representation(), expected) < 1e-14


def test_a_model_that_does_not_use_its_parameters_has_derivative_zero(build: Build, hooks: Hooks) -> None:
    generator = hooks(build(lambda net, x: 2 * x, a=nn.Linear(3, 2)))
    v, u = draw(generator), random_fvector(4, 3, dtype=torch.float64)
    assert not generator.jvp(v, X).vector_repr.any() and generator.jvp(v, X).size() == (3, 4)
    assert not generator.vjp(u, X).get_flat_representation().any()
    assert not generator.product(v, X).get_flat_representation().any()


@pytest.mark.parametrize(("shape", "message"), [
    ((3, 4), r"u has shape \(3, 4\), expected \(c, n\) for 2 outputs and at least 4 examples"),
    ((2, 3), r"u has shape \(2, 3\), expected \(c, n\) for 2 outputs and at least 4 examples"),
    ((1, 8), r"u has shape \(1, 8\), expected \(c, n\) for 2 outputs and at least 4 examples"),
    ((2, 5), r"u has shape \(2, 5\), and there are 4 examples"),
])  # fmt: skip
def test_cotangents_of_another_shape_are_refused(shape: tuple[int, int], message: str, hooks: Hooks) -> None:
    with pytest.raises(ShapeError, match=message):
        hooks(nn.Linear(3, 2).double()).vjp(FVector(torch.ones(shape, dtype=torch.float64)), X)


def test_vectors_about_other_layers_are_refused(hooks: Hooks) -> None:
    generator = hooks(nn.Linear(3, 2).double())
    other = random_pvector(LayerCollection.from_model(nn.Linear(2, 3)))
    for call in (generator.jvp, generator.product):
        with pytest.raises(LayerCollectionMismatchError):
            call(other, X)


@pytest.mark.parametrize("examples", [[], [X[:0]], iter(())], ids=["empty", "no-examples", "exhausted"])
def test_no_examples_are_refused(examples: list[Tensor] | Iterator[Tensor], hooks: Hooks) -> None:
    generator = hooks(nn.Linear(3, 2).double())
    with pytest.raises(ValueError, match="no examples were given; a product needs at least one"):
        generator.product(draw(generator), examples)


def test_models_in_training_mode_with_batch_norm_are_refused(hooks: Hooks) -> None:
    generator = hooks(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False)).double())
    with pytest.raises(UnsupportedLayerError, match=r"'1' \(BatchNorm1d\) normalises with the statistics of the batch"):
        generator.product(draw(generator), X)


def test_a_wrong_forward_mode_is_found_and_left(build: Build, hooks: Hooks) -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def setup_context(ctx: object, inputs: object, output: object) -> None:
            pass

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient

        @staticmethod
        def jvp(ctx: object, tangent: Tensor) -> Tensor:
            return 2 * tangent

    generator = hooks(build(lambda net, x: Wrong.apply(net.a(x)), a=nn.Linear(3, 2)))
    v, expected = draw(generator), fisher(generator.model, X, names(generator), "regression")
    product = generator.product(v, X).get_flat_representation()
    assert relative_error(product, expected @ v.get_flat_representation()) < 1e-12


@pytest.mark.parametrize(
    "mix", [lambda h: h - h.mean(0), lambda h: nn.functional.dropout(h, 0.5)], ids=["mean", "random"]
)
def test_models_without_a_derivative_of_one_example_are_refused(
    mix: Callable[[Tensor], Tensor], build: Build, hooks: Hooks
) -> None:
    generator = hooks(build(lambda net, x: mix(net.a(x)), a=nn.Linear(3, 2)))
    v, u = draw(generator), random_fvector(4, 2, dtype=torch.float64)
    for call in (lambda: generator.jvp(v, X), lambda: generator.vjp(u, X), lambda: generator.product(v, X)):
        with pytest.raises(UnsupportedLayerError, match="the model mixes examples|the model draws random numbers"):
            call()


def test_mixing_is_found_when_the_first_batch_has_one_example(build: Build, hooks: Hooks) -> None:
    generator = hooks(build(lambda net, x: net.a(x) - net.a(x).mean(0) / 2, a=nn.Linear(3, 2)))
    with pytest.raises(UnsupportedLayerError, match="the model mixes examples"):
        generator.product(draw(generator), [(X[:1],), (X[1:],)])


def test_outputs_that_are_not_finite_name_batch_and_module(hooks: Hooks) -> None:
    generator, wrong = hooks(nn.Sequential(nn.Linear(3, 2)).double()), X.clone()
    wrong[2, 2] = float("nan")
    v, u, loader = draw(generator), random_fvector(8, 2, dtype=torch.float64), [(X,), (wrong,)]
    for call in (
        lambda: generator.jvp(v, loader),
        lambda: generator.vjp(u, loader),
        lambda: generator.product(v, loader),
    ):
        with pytest.raises(NonFiniteError, match=r"batch 1: .* the first module to return one is '0' \(Linear\)"):
            call()


def test_derivatives_that_are_not_finite_are_refused(build: Build, hooks: Hooks) -> None:
    generator = hooks(build(lambda net, x: (0 * net.a(x)).sqrt(), a=nn.Linear(3, 2)))
    v, u = draw(generator), random_fvector(4, 2, dtype=torch.float64)
    calls = {
        "J v": lambda: generator.jvp(v, X),
        r"J\^T u": lambda: generator.vjp(u, X),
        "F v": lambda: generator.product(v, X),
    }
    for what, call in calls.items():
        with pytest.raises(NonFiniteError, match=f"^{what} has a NaN or an infinity, and the outputs have none"):
            call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_sums_are_kept_in_float32_at_least(dtype: torch.dtype, hooks: Hooks) -> None:
    generator = hooks(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype))
    wide = torch.promote_types(dtype, torch.float32)
    product = generator.product(draw(generator, dtype=wide), X.to(dtype)).get_flat_representation()
    assert product.dtype == wide


def test_frozen_parameters_and_flags_stay(hooks: Hooks) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double().requires_grad_(False)
    parameters, generator = list(model.parameters()), hooks(model)
    generator.product(draw(generator), X)
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] * 4
    assert all(mine is theirs for mine, theirs in zip(parameters, model.parameters(), strict=True))


def test_a_module_registered_twice_keeps_its_parameters(hooks: Hooks) -> None:
    shared = nn.Linear(3, 3).double()
    weight, model = shared.weight, nn.Sequential(shared, nn.Tanh(), shared)
    generator = hooks(model)
    v = draw(generator)
    product = generator.product(v, X).get_flat_representation()
    assert shared.weight is weight
    dense = generator.jacobian(X).layers["0"].second_moment() / 4
    assert relative_error(product, dense @ v.get_flat_representation()) < 1e-12


@pytest.mark.parametrize("likelihood", [ClassifLogits(), GaussianLikelihood()], ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("model", "choice"),
    [
        ("mlp", {"only": ["2"]}),
        ("mlp-frozen-bias", {"trainable_only": True}),
        ("conv", {"only": ["0", "6"]}),
        ("called-twice", {"only": ["repeated"]}),
    ],
    ids=["last-layer", "without-a-bias", "first-and-last", "called-twice"],
)
def test_some_of_the_layers_give_the_block(
    model: str, choice: dict[str, Any], likelihood: ClassifLogits, hooks: Hooks
) -> None:
    case = MODELS[model]()
    generator = hooks(case.model, likelihood, layer_collection=LayerCollection.from_model(case.model, **choice))
    every = LayerCollection.from_model(case.model).named_parameters(case.model)
    held = [torch.full((p.numel(),), name in names(generator)) for name, p in every]
    block = torch.cat(held).nonzero().squeeze(1)
    v, every_name = draw(generator), [name for name, _ in every]
    exact = fisher(case.model, case.inputs, every_name, likelihood.name)[block][:, block]
    jacobian = output_jacobian(case.model, case.inputs, every_name)[..., block]
    u = random_fvector(len(case.inputs), case.n_output, dtype=torch.float64)
    product, pulled = generator.product(v, case.inputs), generator.vjp(u, case.inputs)
    assert 0 < len(block) < sum(len(part) for part in held)
    assert relative_error(product.get_flat_representation(), exact @ v.get_flat_representation()) < 1e-12
    assert relative_error(generator.jvp(v, case.inputs).vector_repr, jacobian @ v.get_flat_representation()) < 1e-12
    assert relative_error(pulled.get_flat_representation(), torch.einsum("cn,cnd->d", u.vector_repr, jacobian)) < 1e-12
