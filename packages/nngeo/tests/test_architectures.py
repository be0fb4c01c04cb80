"""Real architectures: every parameter is covered, and every number agrees with plain autograd on each example alone."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from nngeo import (
    FIM,
    FVector,
    LayerCollection,
    PMatDense,
    PMatDiag,
    PMatKFAC,
    PVector,
    UnsupportedLayerError,
    UnsupportedOperationError,
)
from nngeo_core.testing import kfac_factors, output_jacobian, relative_error

from .architectures import ARCHITECTURES, Architecture, adapted, bert, gpt2, lstm, resnet, unet

SMALL = [name for name in ARCHITECTURES if name != "minilm"]
STRUCTURED = ["gpt2-eager", "llama-sdpa", "bert-pooled", "resnet", "minilm", "unet", "lstm", "low-rank-adapters"]


@cache
def known(name: str) -> tuple[Architecture, PMatDiag, Tensor]:
    """An architecture, the diagonal of its matrix, and its Jacobian (c, n, d) from the oracle, in the same order."""
    built = ARCHITECTURES[name]()
    matrix = FIM(built.model, built.inputs, PMatDiag, variant="regression", function=built.outputs)
    return built, matrix, _oracle(built, matrix.layer_collection)


def _oracle(built: Architecture, layers: LayerCollection) -> Tensor:
    names = [name for name, _ in layers.named_parameters(built.model)]
    return output_jacobian(built.model, built.inputs, names, built.outputs)


def _diagonal(jacobian: Tensor) -> Tensor:
    return jacobian.square().sum((0, 1)) / jacobian.shape[1]


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_covered(name: str) -> None:
    built, matrix, _ = known(name)
    covered = [name for name, _ in matrix.layer_collection.named_parameters(built.model)]
    assert sorted(covered) == sorted(name for name, _ in built.model.named_parameters())
    assert matrix.layer_collection.numel() == sum(parameter.numel() for parameter in built.model.parameters())


@pytest.mark.parametrize("name", STRUCTURED)
def test_no_layer_goes_the_generic_way(name: str) -> None:
    assert LayerCollection.from_model(ARCHITECTURES[name]().model, ignore_unsupported_layers=True).ignored == ()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_diagonal_and_trace(name: str) -> None:
    built, matrix, jacobian = known(name)
    assert relative_error(matrix.get_diag(), _diagonal(jacobian)) <= built.tolerance
    assert relative_error(matrix.trace(), jacobian.square().sum() / len(built.inputs)) <= built.tolerance


@pytest.mark.parametrize("name", SMALL)
def test_diagonal_one_example_and_direction_at_a_time(name: str) -> None:
    built, _, jacobian = known(name)
    matrix = FIM(built.model, built.inputs, PMatDiag, variant="regression", function=built.outputs, memory_budget=1)
    assert relative_error(matrix.get_diag(), _diagonal(jacobian)) <= built.tolerance


@pytest.mark.parametrize("name", SMALL)
def test_dense_matrix(name: str) -> None:
    built, _, jacobian = known(name)
    matrix = FIM(built.model, built.inputs, PMatDense, variant="regression", function=built.outputs)
    rows = jacobian.flatten(0, 1)
    assert relative_error(matrix.get_dense_tensor(), rows.T @ rows / len(built.inputs)) <= built.tolerance
    v = _drawn(rows.shape[1])
    quadratic_form = matrix.vTMv(PVector(matrix.layer_collection, vector_repr=v))
    assert relative_error(quadratic_form, (rows @ v).square().sum() / len(built.inputs)) <= built.tolerance


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_matrix_free_products(name: str) -> None:
    built, matrix, jacobian = known(name)
    generator, rows = matrix.generator, jacobian.flatten(0, 1)
    v, u = _drawn(rows.shape[1]), _drawn(*jacobian.shape[:2])
    vector, change = PVector(matrix.layer_collection, vector_repr=v), rows @ v
    product = generator.product(vector, built.inputs)
    assert relative_error(product.get_flat_representation(), change @ rows / len(built.inputs)) <= built.tolerance
    assert relative_error(vector.dot(product), change.square().sum() / len(built.inputs)) <= built.tolerance
    found = generator.jvp(vector, built.inputs).vector_repr
    assert relative_error(found, change.view(jacobian.shape[:2])) <= built.tolerance
    pulled = generator.vjp(FVector(u), built.inputs).get_flat_representation()
    assert relative_error(pulled, u.flatten() @ rows) <= built.tolerance


def test_dense_matrix_of_some_layers_of_the_sentence_encoder() -> None:
    built = ARCHITECTURES["minilm"]()
    layers = LayerCollection.from_model(built.model, only=["encoder.layer.[05].*LayerNorm"])
    assert layers.numel() == 4 * 2 * 384
    options = {"variant": "regression", "function": built.outputs, "layer_collection": layers}
    matrix = FIM(built.model, built.inputs, PMatDense, **options)
    rows = _oracle(built, layers).flatten(0, 1)
    assert relative_error(matrix.get_dense_tensor(), rows.T @ rows / len(built.inputs)) <= built.tolerance


def test_an_unused_pooler_has_derivative_zero() -> None:
    _, matrix, _ = known("bert-unused-pooler")
    place = matrix.layer_collection.slices()["pooler.dense"]
    assert matrix.get_diag()[place].abs().sum() == 0
    _, pooled, _ = known("bert-pooled")
    assert pooled.get_diag()[place].abs().sum() > 0


def _kfac(built: Architecture, *only: str) -> PMatKFAC:
    layers = LayerCollection.from_model(built.model, only=only)
    return FIM(
        built.model, built.inputs, PMatKFAC, variant="regression", function=built.outputs, layer_collection=layers
    )


@pytest.mark.parametrize(
    ("build", "only"),
    [
        (bert, ["encoder.*.dense", "pooler.dense", "*.query"]),
        (resnet, ["*.convolution", "classifier.1"]),
        (unet, ["before", "down.0", "after"]),
        (adapted, ["*.down", "*.up"]),
    ],
    ids=["bert", "resnet", "unet", "low-rank-adapters"],
)
def test_kfac_equals_its_formula(build: Callable[..., Architecture], only: list[str]) -> None:
    built = build(pooled=True) if build is bert else build()
    matrix = _kfac(built, *only)
    for path, factors in matrix.data.items():
        inputs, outputs = kfac_factors(built.model, built.inputs, path, "regression", built.outputs)
        assert relative_error(factors.inputs, inputs) <= built.tolerance, path
        assert relative_error(factors.outputs, outputs) <= built.tolerance, path


def test_kfac_of_the_linear_layers_of_gpt2_equals_that_of_torchs_own() -> None:
    built = gpt2()
    paths = [path for path, module in built.model.named_modules() if type(module).__name__ == "Conv1D"]
    matrix, twin = _kfac(built, *paths), replace(built, model=deepcopy(built.model))
    for path in paths:
        twin.model.set_submodule(path, _transposed(twin.model.get_submodule(path)))
    assert list(matrix.data) == paths
    for path, factors in matrix.data.items():
        inputs, outputs = kfac_factors(twin.model, built.inputs, path, "regression", twin.outputs)
        assert relative_error(factors.inputs, inputs) <= 1e-10, path
        assert relative_error(factors.outputs, outputs) <= 1e-10, path


def _transposed(conv1d: nn.Module) -> nn.Linear:
    linear = nn.Linear(*conv1d.weight.shape).double()
    linear.load_state_dict({"weight": conv1d.weight.T, "bias": conv1d.bias})
    return linear


@pytest.mark.parametrize(
    "path", ["transformer.h.0.ln_1", "transformer.wte"], ids=["normalisation", "tied-embedding-and-head"]
)
def test_kfac_refuses_by_name_what_has_no_factors(path: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=path):
        _kfac(gpt2(), path)


def test_low_rank_adapters_alone() -> None:
    built = adapted()
    layers = LayerCollection.from_model(built.model, trainable_only=True)
    trainable = [name for name, parameter in built.model.named_parameters() if parameter.requires_grad]
    assert [name for name, _ in layers.named_parameters(built.model)] == trainable
    assert layers.numel() == 2 * 2 * (8 + 24)
    matrix = FIM(
        built.model, built.inputs, PMatDense, variant="regression", function=built.outputs, layer_collection=layers
    )
    rows = _oracle(built, layers).flatten(0, 1)
    assert relative_error(matrix.get_dense_tensor(), rows.T @ rows / 3) <= 1e-10
    v = _drawn(layers.numel())
    product = matrix.generator.product(PVector(layers, vector_repr=v), built.inputs)
    assert relative_error(product.get_flat_representation(), rows.T @ (rows @ v) / 3) <= 1e-10
    assert [name for name, parameter in built.model.named_parameters() if parameter.requires_grad] == trainable


def _checkpointed(reentrant: bool) -> tuple[Architecture, Architecture]:
    """GPT-2 without dropout in training mode, the only one in which transformers checkpoints, and the same without."""
    plain = gpt2(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False)
    twin = replace(plain, model=deepcopy(plain.model).train())
    twin.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert twin.model.is_gradient_checkpointing
    return plain, twin


def _agrees(plain: Architecture, twin: Architecture) -> None:
    """Diagonal and product of a model equal the oracle of another one with the same parameters in the same order."""
    matrix = FIM(twin.model, twin.inputs, PMatDiag, variant="regression", function=twin.outputs)
    rows = _oracle(plain, LayerCollection.from_model(plain.model)).flatten(0, 1)
    assert relative_error(matrix.get_diag(), rows.square().sum(0) / len(plain.inputs)) <= 1e-10
    v = _drawn(rows.shape[1])
    product = matrix.generator.product(PVector(matrix.layer_collection, vector_repr=v), plain.inputs)
    assert relative_error(product.get_flat_representation(), rows.T @ (rows @ v) / len(plain.inputs)) <= 1e-10


def test_activation_checkpointing() -> None:
    _agrees(*_checkpointed(reentrant=False))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused_with_a_way_out() -> None:
    with pytest.raises(UnsupportedLayerError, match="set use_reentrant=False"):
        _agrees(*_checkpointed(reentrant=True))


@pytest.mark.parametrize("build", [gpt2, lstm, unet], ids=lambda build: build.__name__)
def test_compiled_models(build: Callable[[], Architecture]) -> None:
    plain = build()
    _agrees(plain, replace(plain, model=torch.compile(plain.model, backend="eager")))


def test_models_with_a_compiled_part_that_has_run_already() -> None:
    plain, twin = lstm(), lstm()
    twin.model.mixer.compile(backend="eager")
    compiled = twin.model(twin.inputs)
    assert relative_error(compiled, plain.model(plain.inputs)) <= 1e-12
    _agrees(plain, twin)
    assert relative_error(twin.model(twin.inputs), compiled) == 0
