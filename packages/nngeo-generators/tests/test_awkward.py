"""Every awkward model is exact, in all that can be computed, or refused with its reason; none is silently wrong."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import FVector, NNGeoError, PVector, UnsupportedLayerError
from nngeo_core.sweep.untouched import undisturbed
from nngeo_core.testing import output_jacobian, relative_error
from nngeo_generators import HooksGenerator

from .awkward import Awkward
from .awkward_networks import CASES

Hooks = Callable[..., HooksGenerator]

EXACT = {name: case for name, case in CASES.items() if not case.refused}
REFUSED = {name: case for name, case in CASES.items() if case.refused}


def built(case: Awkward) -> nn.Module:
    """In float64, and in the mode that the case asks for."""
    model = case.build().double()
    return model if "in_training" in case.build.__name__ else model.eval()


def names(generator: HooksGenerator) -> list[str]:
    return [name for name, _ in generator.layer_collection.named_parameters(generator.model)]


def streamed(generator: HooksGenerator, batches: list[Tensor]) -> Tensor:
    """The Jacobian (c, n, d) of the batches, one after the other."""
    sizes = {name: layer.numel() for name, layer in generator.layer_collection.items()}
    with undisturbed(generator.model, torch.device("cpu")), torch.no_grad():
        return torch.cat([found.to_dense(sizes) for found in generator.stream([(x,) for x in batches])], 1)


def vectors(d: int, c: int, n: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    return torch.randn(d, dtype=torch.float64, generator=source), torch.randn(
        c, n, dtype=torch.float64, generator=source
    )


@pytest.mark.parametrize("cuts", [[5], [1, 4], [4, 1], [2, 3]], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_the_jacobian_is_exact_whatever_the_batches(name: str, cuts: list[int], hooks: Hooks) -> None:
    case = EXACT[name]
    generator = hooks(built(case))
    expected = output_jacobian(generator.model, case.inputs, names(generator))
    assert set(names(generator)) == {name for name, _ in generator.model.named_parameters()}
    assert relative_error(streamed(generator, list(case.inputs.split(cuts))), expected) < 1e-10


@pytest.mark.parametrize("name", EXACT)
def test_fisher_diagonal_trace_and_quadratic_form_are_exact(
    name: str, hooks: Hooks, dense_fisher: Callable[..., Tensor]
) -> None:
    case = EXACT[name]
    generator = hooks(built(case))
    jacobian = output_jacobian(generator.model, case.inputs, names(generator))
    v, _ = vectors(*jacobian.shape[::-1][:1], 1, 1)
    expected = torch.einsum("cni,cnj->ij", jacobian, jacobian) / 5
    found, places = generator.jacobian(case.inputs), generator.layer_collection.slices()
    diagonal, change = torch.zeros_like(v), torch.zeros(jacobian.shape[:2], dtype=torch.float64)
    for layer_id, layer in found.layers.items():
        diagonal[places[layer_id]] = layer.sum_of_squares() / 5
        change += layer.jvp(v[places[layer_id]])
    assert relative_error(dense_fisher(generator.model, case.inputs), expected) < 1e-10
    assert relative_error(diagonal, expected.diagonal()) < 1e-10
    assert abs(sum(float(layer.squared_norm()) for layer in found.layers.values()) / 5 - expected.trace()) < 1e-10 * (
        1 + expected.trace()
    )
    assert abs((change**2).sum() / 5 - v @ expected @ v) < 1e-10 * (1 + v @ expected @ v)


@pytest.mark.parametrize("name", EXACT)
def test_products_are_exact(name: str, hooks: Hooks) -> None:
    case = EXACT[name]
    generator = hooks(built(case))
    jacobian = output_jacobian(generator.model, case.inputs, names(generator))
    v, u = vectors(jacobian.shape[2], *jacobian.shape[:2])
    vector = PVector(generator.layer_collection, vector_repr=v)
    batches = [(x,) for x in case.inputs.split([2, 3])]
    pulled = generator.vjp(FVector(u), batches).get_flat_representation()
    product = generator.product(vector, batches).get_flat_representation()
    assert relative_error(generator.jvp(vector, batches).vector_repr, jacobian @ v) < 1e-10
    assert relative_error(pulled, torch.einsum("cn,cnd->d", u, jacobian)) < 1e-10
    assert relative_error(product, torch.einsum("cnd,cn->d", jacobian, jacobian @ v) / 5) < 1e-10


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_derivative_of_one_example_is_refused_with_its_reason(name: str, hooks: Hooks) -> None:
    case = REFUSED[name]
    with pytest.raises(UnsupportedLayerError, match=case.refused):
        hooks(built(case)).jacobian(case.inputs.clone())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_products_too(name: str, hooks: Hooks) -> None:
    case = REFUSED[name]
    with pytest.raises(NNGeoError, match=f"{case.refused}|no way to J v is exact"):
        generator = hooks(built(case))
        d = sum(layer.numel() for layer in generator.layer_collection.values())
        generator.product(PVector(generator.layer_collection, vector_repr=vectors(d, 1, 1)[0]), case.inputs.clone())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no-grad", "inference-mode"])
@pytest.mark.parametrize(
    "name", ["bare-parameters", "own-no-grad", "lstm-sequence-first", "custom-NumpyTanh", "flipped"]
)
def test_the_callers_mode_does_not_matter(
    name: str, mode: Callable[[], AbstractContextManager[Any]], hooks: Hooks
) -> None:
    case = EXACT[name]
    generator = hooks(built(case))
    expected = output_jacobian(generator.model, case.inputs, names(generator))
    v, _ = vectors(expected.shape[2], 1, 1)
    with mode():
        found = streamed(generator, [case.inputs])
        product = generator.product(PVector(generator.layer_collection, vector_repr=v), case.inputs)
    assert relative_error(found, expected) < 1e-10
    assert (
        relative_error(product.get_flat_representation(), torch.einsum("cnd,cn->d", expected, expected @ v) / 5) < 1e-10
    )


@pytest.mark.parametrize(
    "name",
    ["lstm-sequence-first", "gru-hidden-state", "cell-in-a-loop", "windowed-attention", "bilinear", "bare-parameters"],
)
def test_single_precision(name: str, hooks: Hooks) -> None:
    """Where torch takes other kernels, as for recurrent cells."""
    case = EXACT[name]
    generator = hooks(built(case).float())
    single, double = case.inputs.float(), built(case)
    double.load_state_dict(generator.model.state_dict())
    expected = output_jacobian(double, single.double(), names(generator))
    v, _ = vectors(expected.shape[2], 1, 1)
    product = generator.product(PVector(generator.layer_collection, vector_repr=v.float()), single)
    assert relative_error(streamed(generator, list(single.split([2, 3]))), expected) < 1e-5
    assert (
        relative_error(product.get_flat_representation(), torch.einsum("cnd,cn->d", expected, expected @ v) / 5) < 1e-5
    )


def test_the_table_is_long_enough_to_mean_something() -> None:
    assert (len(EXACT) > 60, len(REFUSED) > 15) == (True, True)


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    """Whatever happened, grad mode is as before."""
    yield
    assert torch.is_grad_enabled()
