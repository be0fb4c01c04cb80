"""Jacobian: both maps against the oracle, and the operators that they make."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import (
    FMat,
    GramMatrix,
    Jacobian,
    LayerCollectionMismatchError,
    PluginError,
    PushForward,
    ShapeError,
    random_fvector,
    random_pvector,
)
from nngeo_core.matrices import maps
from nngeo_core.plugins import Registry, registry
from nngeo_core.testing import MODELS, Case, output_jacobian, relative_error

TOLERANCE = 1e-10


def oracle(case: Case, inputs: Tensor) -> Tensor:
    names = [n for names in Jacobian(case.model, inputs).layer_collection.parameter_names.values() for n in names]
    return output_jacobian(case.model, inputs, names)


@pytest.mark.parametrize("representation", ["dense", "implicit"])
@pytest.mark.parametrize("model", ["mlp", "conv-groups", "tied-weight-own-bias"])
@pytest.mark.parametrize("budget", [1, None])
def test_the_maps_are_those_of_the_oracle(representation: str, model: str, budget: int | None) -> None:
    case = MODELS[model]()
    J = Jacobian(case.model, iter(case.inputs.split(2)), representation, memory_budget=budget)
    expected = oracle(case, case.inputs)
    c, n, d = expected.shape
    source = torch.Generator().manual_seed(0)
    v = random_pvector(J.layer_collection, dtype=torch.float64, generator=source)
    u = random_fvector(n, c, dtype=torch.float64, generator=source)
    assert J.size() == (c, n, d)
    assert relative_error(J.get_dense_tensor(), expected) <= TOLERANCE
    assert relative_error((J @ v).vector_repr, expected @ v.get_flat_representation()) <= TOLERANCE
    pulled = torch.einsum("cnd,cn->d", expected, u.vector_repr)
    assert relative_error((J.T @ u).get_flat_representation(), pulled) <= TOLERANCE
    assert relative_error((J.T.T @ v).vector_repr, (J @ v).vector_repr) <= TOLERANCE


@pytest.mark.parametrize("representation", ["dense", "implicit"])
def test_a_map_times_its_transpose_is_the_kernel(representation: str) -> None:
    case = MODELS["conv"]()
    J = Jacobian(case.model, case.inputs, representation)
    K = J @ J.T
    assert isinstance(K, FMat)
    assert K.symmetric
    u = random_fvector(5, 3, dtype=torch.float64)
    assert relative_error((K @ u).vector_repr, (GramMatrix(case.model, case.inputs) @ u).vector_repr) <= TOLERANCE


def test_maps_of_other_examples_make_a_cross_kernel() -> None:
    case = MODELS["mlp"]()
    first, second = Jacobian(case.model, case.inputs), Jacobian(case.model, case.inputs[:2] * 2)
    K = first @ second.T
    assert K.size() == (3, 7, 3, 2)
    expected = GramMatrix(case.model, case.inputs, loader2=case.inputs[:2] * 2)
    assert relative_error(K.get_dense_tensor(), expected.get_dense_tensor()) <= TOLERANCE
    with pytest.raises(ValueError, match="both maps of the same examples"):
        first.T @ second


def test_maps_of_other_models_do_not_multiply() -> None:
    first, second = MODELS["mlp"](), MODELS["mlp"]()
    for attempt in (lambda a, b: a @ b.T, lambda a, b: a.T @ b):
        with pytest.raises(LayerCollectionMismatchError, match="different models or functions"):
            attempt(Jacobian(first.model, first.inputs), Jacobian(second.model, first.inputs))


@pytest.mark.parametrize("representation", ["dense", "implicit"])
def test_the_transpose_times_a_map_is_n_times_the_registered_matrix(
    representation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = MODELS["conv"]()
    n = len(case.inputs)
    asked: list[tuple[str, str]] = []

    def found(name: str, kind: str) -> Any:
        asked.append((name, kind))
        return registry.representation("dense")  # which has entries to compare

    monkeypatch.setattr(maps, "registry", SimpleNamespace(representation=found))
    J = Jacobian(case.model, iter(case.inputs.split(2)), representation)
    F = J.T @ J / n
    assert asked == [("implicit", "pmat")]
    rows = oracle(case, case.inputs).flatten(0, 1)
    assert relative_error(F.get_dense_tensor(), rows.T @ rows / n) <= TOLERANCE


def test_without_the_package_of_matrices_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    case = MODELS["mlp"]()
    J = Jacobian(case.model, case.inputs)
    monkeypatch.setenv("NNGEO_DISABLED_PLUGINS", "nngeo-reprs")
    monkeypatch.setattr(maps, "registry", Registry())
    with pytest.raises(PluginError, match="unknown pmat representation 'implicit'.*nngeo-reprs"):
        J.T @ J


def one_for_each_token(inputs: Tensor) -> Tensor:
    return inputs.sum(2) * WEIGHT.weight.sum()


WEIGHT = nn.Linear(2, 1)


def test_outputs_that_change_width_are_refused() -> None:
    batches = [torch.ones(1, 3, 2), torch.ones(1, 2, 2)]
    with pytest.raises(ShapeError, match="example 1 has 2 outputs, and the first one has 3"):
        Jacobian(WEIGHT, iter(batches), "dense", one_for_each_token)


WRONG: list[tuple[Callable[[Case], Any], type[Exception], str]] = [
    (lambda case: Jacobian(case.model, case.inputs, "diag"), PluginError, "'dense', 'implicit'"),
    (lambda case: Jacobian(case.model, case.inputs, PushForward), TypeError, "a concrete PushForward class"),
    (lambda case: Jacobian(case.model, []), ValueError, "no examples"),
]


@pytest.mark.parametrize(("attempt", "error", "message"), WRONG)
def test_bad_options_are_refused(attempt: Callable[[Case], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attempt(MODELS["mlp"]())
