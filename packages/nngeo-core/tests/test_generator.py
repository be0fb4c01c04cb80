"""Generator: what it refuses, and the vectors that go in and out; with a generator that differentiates nothing."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core.errors import LayerCollectionMismatchError, ShapeError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.layer import LinearLayer
from nngeo_core.likelihoods.categorical import ClassifLogits
from nngeo_core.likelihoods.gaussian import GaussianLikelihood
from nngeo_core.sweep.examples import Batch
from nngeo_core.sweep.generator import Generator
from nngeo_core.vectors.fvector import FVector
from nngeo_core.vectors.pvector import PVector

LAYERS = LayerCollection({"": LinearLayer(3, 2)})
X = torch.arange(12.0, dtype=torch.float64).view(4, 3)


class Recording(Generator):
    """Returns what it was given, and notes the modes that it was called in."""

    name = "recording"
    modes: tuple[bool, bool] | None = None

    def _note(self, batches: Iterable[Batch]) -> list[Batch]:
        self.modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        return list(batches)

    def _jacobian(self, batch: Batch, directions: slice | None) -> JacobianBatch:
        self._note([batch])
        chosen = directions or slice(0, 2)
        return JacobianBatch({}, len(batch), chosen, 2, batch.dtype, batch.device)

    def stream(self, batches: Iterable[Batch]) -> Iterator[JacobianBatch]:
        return map(self._jacobian, batches, [None])

    def _jvp(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        return v[:1, None].expand(2, sum(map(len, self._note(batches)))) + 0

    def _vjp(self, u: Tensor, batches: Iterable[Batch]) -> Tensor:
        self._note(batches)
        return u.sum() * torch.ones(8, dtype=u.dtype)

    def _product(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        self._note(batches)
        return 2 * v


def recording(model: nn.Module | None = None, layers: LayerCollection = LAYERS, **options: Any) -> Recording:
    model = nn.Linear(3, 2).double() if model is None else model
    return Recording(model, GaussianLikelihood(), layer_collection=layers, **options)


V = PVector(LAYERS, vector_repr=torch.arange(1.0, 9.0, dtype=torch.float64))
U = FVector(torch.ones(2, 4, dtype=torch.float64))


def test_vectors_go_in_and_out() -> None:
    generator = recording()
    assert generator.jvp(V, X).vector_repr.tolist() == [[1.0] * 4] * 2
    assert generator.vjp(U, X).get_flat_representation().tolist() == [8.0] * 8
    assert generator.product(V, X).get_flat_representation().tolist() == [2.0 * k for k in range(1, 9)]
    assert generator.product(V, X).layer_collection is generator.layer_collection
    assert generator.jacobian(X, slice(1, 2)).directions == slice(1, 2)


CALLS: dict[str, Callable[[Recording], Any]] = {
    "jacobian": lambda generator: generator.jacobian(X),
    "jvp": lambda generator: generator.jvp(V, X),
    "vjp": lambda generator: generator.vjp(U, X),
    "product": lambda generator: generator.product(V, X),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_computations_see_neither_gradients_nor_inference_mode(
    call: Callable[..., Any], mode: Callable[[], Any]
) -> None:
    generator = recording()
    with mode():
        call(generator)
    assert generator.modes == (False, False)


@pytest.mark.parametrize("call", ["jvp", "product"])
def test_vectors_about_other_layers_are_refused(call: str) -> None:
    other = PVector(LayerCollection({"": LinearLayer(2, 2)}), vector_repr=torch.ones(6))
    with pytest.raises(LayerCollectionMismatchError):
        getattr(recording(), call)(other, X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"check": "always"}, "check is one of ('first-batch', 'every-batch', 'off'), got 'always'"),
        ({"memory_budget": 0}, "memory_budget is a positive number of bytes, got 0"),
        ({"memory_budget": -5}, "memory_budget is a positive number of bytes, got -5"),
        ({"device": "cuda"}, "device='cuda' was given and the model is on 'cpu'; call model.to(device)"),
        ({"device": "meta"}, "device='meta' was given and the model is on 'cpu'; call model.to(device)"),
        ({"device": "cpu:1"}, "device='cpu:1' was given and the model is on 'cpu'; call model.to(device)"),
        (
            {"layers": LayerCollection()},
            "the layer collection has no parameters: there is nothing to differentiate",
        ),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        recording(**options)
    assert str(error.value) == message


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_the_device_is_the_models(device: Any) -> None:
    assert recording(device=device).device == torch.device("cpu")


def test_a_device_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Invalid device string: 'gpu0'"):
        recording(device="gpu0")


def test_a_model_on_several_devices_is_refused() -> None:
    model = nn.Linear(3, 2)
    model.bias = nn.Parameter(torch.ones(2, device="meta"))
    with pytest.raises(ValueError, match=r"on several devices, \['cpu', 'meta'\]; expected one"):
        recording(model)


def test_a_model_without_the_collections_parameters_is_refused() -> None:
    with pytest.raises(LayerCollectionMismatchError):
        recording(nn.Linear(3, 2, bias=False))


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"parameter 'weight' is torch.complex64; expected real floating-point numbers"
    ):
        recording(nn.Linear(3, 2, dtype=torch.complex64))


def test_a_model_made_under_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        model = nn.Linear(3, 2)
    with pytest.raises(
        ValueError, match=r"parameter 'weight' was made under torch.inference_mode\(\) and cannot be diff"
    ):
        recording(model)


def test_the_memory_budget_may_be_left_to_the_generator() -> None:
    assert recording(memory_budget=None).memory_budget is None


def test_outputs_are_checked() -> None:
    generator = recording(n_output=2)
    assert generator.outputs(X, 4).shape == (4, 2)
    with pytest.raises(ShapeError) as error:
        generator.outputs(X, 5)
    assert str(error.value) == (
        "the batch has 5 examples and the outputs have shape (4, 2); the first dimension of inputs and outputs is that of "
        "the examples. Give a `function` that returns them so"
    )
    with pytest.raises(ValueError, match="n_output=3 was given, and the model returns 2 outputs per example"):
        recording(n_output=3).outputs(X, 4)


def test_outputs_are_what_the_likelihood_expects() -> None:
    model = nn.Linear(3, 2).double()
    generator = Recording(model, ClassifLogits(), lambda x: model(x)[..., None], LAYERS)
    with pytest.raises(
        ShapeError, match=r"variant 'classif_logits' expects outputs of shape \(n, classes\).*, got \(4, 2, 1\)"
    ):
        generator.outputs(X, 4)


def test_outputs_of_a_function() -> None:
    model = nn.Linear(3, 2).double()
    generator = Recording(model, GaussianLikelihood(), lambda x, y: model(x) * y, LAYERS)
    assert generator.outputs((X, torch.zeros(4, 1)), 4).tolist() == [[0.0, 0.0]] * 4
