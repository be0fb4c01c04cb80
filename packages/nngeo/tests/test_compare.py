"""compare_representations: every figure against dense matrices that plain autograd makes, by layer and in total."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nngeo import (
    ClassifLogits,
    FIM_MonteCarlo,
    LayerCollection,
    LayerCollectionMismatchError,
    LinearLayer,
    MonteCarlo,
    PluginError,
    PMatDiag,
    RepresentationComparison,
    compare_representations,
)
from nngeo_core.testing import (
    block_diagonal,
    ekfac_block,
    fisher,
    kfac_factors,
    kronecker_block,
    output_jacobian,
    quasi_diagonal,
)

VECTORS, DAMPINGS = 4, (0.01, 0.3, 2.0)
MIXED = {nn.BatchNorm2d: "blockdiag", None: "kfac"}
REPRESENTATIONS = {
    **{name: name for name in ("dense", "implicit", "lowrank", "blockdiag", "diag", "quasidiag")},
    "mixed kfac": MIXED,
    "mixed ekfac": {nn.BatchNorm2d: "blockdiag", None: "ekfac"},
    "mixed dense": {"[04]": "dense", None: "diag"},
}
TOLERANCE = 1e-8  # of solves with the eigenvectors of float64 matrices; all else agrees to 1e-12


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
        nn.init.normal_(model[1].weight)
        return model.eval()


MODEL = net()
X = torch.randn(12, 1, 3, 3, dtype=torch.float64, generator=seeded())
NAMES = [name for name, _ in MODEL.named_parameters()]
PLACES = {"0": slice(0, 10), "1": slice(10, 14), "4": slice(14, 41)}
SIZES = [10, 4, 27]
BIASES = {"0": [8] * 4 + [9] * 4, "1": [2, 3], "4": [24] * 8 + [25] * 8 + [26] * 8}


def from_blocks(blocks: list[Tensor]) -> Tensor:
    return torch.block_diag(*blocks)


def approximations(F: Tensor) -> dict[str, Tensor]:
    """The dense matrices of all representations but the Kronecker ones, from their definitions."""
    outer = torch.cat([torch.arange(10), torch.arange(14, 41)])
    mixed = torch.diag(F.diagonal())
    mixed[outer[:, None], outer] = F[outer[:, None], outer]
    return {
        **dict.fromkeys(("dense", "implicit", "lowrank"), F),
        "blockdiag": block_diagonal(F, SIZES),
        "diag": torch.diag(F.diagonal()),
        "quasidiag": from_blocks([quasi_diagonal(F[p, p], BIASES[layer]) for layer, p in PLACES.items()]),
        "mixed dense": mixed,
    }


def kronecker_approximations(F: Tensor) -> dict[str, Tensor]:
    factors = {layer: kfac_factors(MODEL, X, layer, "classif_logits") for layer in ("0", "4")}
    first, norm, last = (F[place, place] for place in PLACES.values())
    kfac = {layer: kronecker_block(*pair, has_bias=True) for layer, pair in factors.items()}
    ekfac = [ekfac_block(first, *factors["0"], has_bias=True), ekfac_block(last, *factors["4"], has_bias=True)]
    return {
        "mixed kfac": from_blocks([kfac["0"], norm, kfac["4"]]),
        "mixed ekfac": from_blocks([ekfac[0], norm, ekfac[1]]),
    }


def unit_vectors(source: torch.Generator, size: int = 41) -> Tensor:
    drawn = torch.stack([torch.randn(size, dtype=torch.float64, generator=source) for _ in range(VECTORS)])
    return drawn / drawn.norm(dim=1, keepdim=True)


def mean_and_error(values: list[Tensor]) -> tuple[float, float]:
    stacked = torch.stack(values)
    return float(stacked.mean()), math.sqrt(float(stacked.var()) / len(values))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, 0)


def check(agreement: Any, A: Tensor, F: Tensor, vectors: Tensor, dampings: tuple[float, ...] = DAMPINGS) -> None:
    """All figures of one matrix, from dense ones."""
    eye = torch.eye(len(F), dtype=F.dtype)
    expected: dict[str, tuple[float, float]] = {
        "form": mean_and_error([(v @ A @ v - v @ F @ v) / (v @ F @ v) for v in vectors]),
        "cosine": mean_and_error([cosine(A @ v, F @ v) for v in vectors]),
    }
    found = {"form": agreement.form_error, "cosine": agreement.cosine}
    for k, r in enumerate(dampings):
        solved = [torch.linalg.solve(A + r * eye, (F + r * eye) @ v) for v in vectors]
        expected[f"cosine {r}"] = mean_and_error([cosine(x, v) for x, v in zip(solved, vectors, strict=True)])
        residuals = [(v - x).norm() / v.norm() for x, v in zip(solved, vectors, strict=True)]
        expected[f"residual {r}"] = mean_and_error(residuals)
        found[f"cosine {r}"], found[f"residual {r}"] = agreement.solve_cosines[k], agreement.solve_residuals[k]
    assert agreement.trace_error == pytest.approx(float(A.trace() / F.trace()) - 1, abs=1e-12)
    for name, (mean, error) in expected.items():
        assert found[name].mean == pytest.approx(mean, abs=TOLERANCE, rel=TOLERANCE), name
        assert found[name].standard_error == pytest.approx(error, abs=TOLERANCE, rel=1e-6), name


@pytest.fixture(scope="module")
def exact() -> RepresentationComparison:
    loader = DataLoader(TensorDataset(X, torch.zeros(len(X))), batch_size=5)
    return compare_representations(
        MODEL, loader, REPRESENTATIONS, dampings=DAMPINGS, vectors=VECTORS, layer_times=True, generator=seeded()
    )


@pytest.mark.parametrize("label", REPRESENTATIONS)
def test_every_figure_equals_the_dense_one_in_total_and_within_layers(
    exact: RepresentationComparison, label: str
) -> None:
    F = fisher(MODEL, X, NAMES, "classif_logits")
    A, vectors = (approximations(F) | kronecker_approximations(F))[label], unit_vectors(seeded())
    measured = exact.measurements[label]
    assert measured.unavailable == {}
    check(measured.total, A, F, vectors)
    assert list(measured.layers) == list(PLACES)
    for layer, place in PLACES.items():
        check(measured.layers[layer], A[place, place], F[place, place], vectors[:, place])


def test_the_reference_and_the_head_of_the_result(exact: RepresentationComparison) -> None:
    F, vectors = fisher(MODEL, X, NAMES, "classif_logits"), unit_vectors(seeded())
    mean, error = mean_and_error([v @ F @ v for v in vectors])
    assert exact.reference.trace == pytest.approx(float(F.trace()))
    assert exact.reference.form.mean == pytest.approx(mean)
    assert exact.reference.form.standard_error == pytest.approx(error)
    traces = {layer: pytest.approx(float(F[place, place].trace())) for layer, place in PLACES.items()}
    assert exact.reference.trace_per_layer == traces
    assert (exact.n_examples, exact.n_vectors, exact.dampings) == (12, VECTORS, DAMPINGS)
    assert (exact.likelihood, exact.trials, exact.seed) == ("classif_logits", None, None)
    assert exact.layer_sizes == dict(zip(PLACES, SIZES, strict=True))


def test_an_exact_representation_has_no_errors_and_cosine_one(exact: RepresentationComparison) -> None:
    for label in ("dense", "implicit", "lowrank"):
        total = exact.measurements[label].total
        assert total.trace_error == pytest.approx(0, abs=1e-13)
        assert total.form_error is not None and abs(total.form_error.mean) < 1e-13
        assert total.cosine is not None and total.cosine.mean == pytest.approx(1, abs=1e-14)
        assert all(one is not None and one.mean < 1e-8 for one in total.solve_residuals)
        assert all(one is not None and one.mean == pytest.approx(1, abs=1e-14) for one in total.solve_cosines)


def test_times_and_memory_are_those_of_the_matrices(exact: RepresentationComparison) -> None:
    for label, one in exact.measurements.items():
        times = (one.build_seconds, one.mv_seconds, one.first_solve_seconds, one.solve_seconds)
        assert all(0 < (seconds or 0) < 60 for seconds in times), label
        assert list(one.layer_times) == list(PLACES)
        assert all(0 < (seconds or 0) < 60 for each in one.layer_times.values() for seconds in vars(each).values())
    stored = {label: one.stored_bytes for label, one in exact.measurements.items()}
    kfac_numbers = {"0": 5 * 5 + 2 * 2, "1": 4 * 4, "4": 9 * 9 + 3 * 3}
    assert stored["dense"] == 8 * 41**2
    assert stored["diag"] == 8 * 41
    assert stored["implicit"] == 0
    assert stored["mixed kfac"] == 8 * sum(kfac_numbers.values())
    assert exact.measurements["mixed kfac"].layer_bytes == {layer: 8 * count for layer, count in kfac_numbers.items()}
    assert exact.measurements["dense"].layer_bytes == {}


def test_a_layers_figures_are_those_of_a_comparison_about_that_layer_alone() -> None:
    layers = LayerCollection.from_model(MODEL).restricted(["4"])
    alone = compare_representations(MODEL, X, ["kfac"], layer_collection=layers, dampings=DAMPINGS, vectors=VECTORS)
    measured = alone.measurements["kfac"]
    assert measured.layers == {"4": measured.total}
    F = fisher(MODEL, X, NAMES, "classif_logits")[PLACES["4"], PLACES["4"]]
    source = seeded(5)
    again = compare_representations(
        MODEL, X, ["kfac"], layer_collection=layers, dampings=DAMPINGS, vectors=VECTORS, generator=source
    )
    A = kronecker_block(*kfac_factors(MODEL, X, "4", "classif_logits"), has_bias=True)
    check(again.measurements["kfac"].layers["4"], A, F, unit_vectors(seeded(5), 27))


def test_monte_carlo_is_about_one_set_of_draws() -> None:
    names = ["dense", "implicit", "blockdiag", "diag", "quasidiag"]
    found = compare_representations(
        MODEL, DataLoader(X, batch_size=5, shuffle=True), names, function=MODEL, trials=5, dampings=DAMPINGS,
        vectors=VECTORS, generator=seeded(),
    )  # fmt: skip
    assert (found.trials, found.likelihood) == (5, "classif_logits")
    assert found.seed is not None
    likelihood = MonteCarlo(ClassifLogits(), 5, found.seed)
    with torch.no_grad():
        directions = likelihood.directions(MODEL(X), likelihood.targets(X), slice(0, 5))
    rows = torch.einsum("knc,cnd->knd", directions, output_jacobian(MODEL, X, NAMES)).flatten(0, 1)
    F, source = rows.T @ rows / len(X), seeded()
    torch.randint(2**62, (), generator=source)  # the seed of the draws comes before the vectors
    vectors = unit_vectors(source)
    for label in names:
        A = approximations(F)[label]
        check(found.measurements[label].total, A, F, vectors)
        for layer, place in PLACES.items():
            check(found.measurements[label].layers[layer], A[place, place], F[place, place], vectors[:, place])
    same = FIM_MonteCarlo(MODEL, X, "dense", trials=5, generator=seeded())
    torch.testing.assert_close(same.get_dense_tensor(), F)


def test_the_default_dampings_surround_the_mean_eigenvalue() -> None:
    found = compare_representations(MODEL, X, ["diag"], vectors=1, per_layer=False)
    mean = float(fisher(MODEL, X, NAMES, "classif_logits").trace()) / 41
    assert found.dampings == pytest.approx([0.01 * mean, 0.1 * mean, mean, 10 * mean, 100 * mean])


def test_one_vector_has_no_standard_error_and_layers_can_be_left_out() -> None:
    measured = compare_representations(MODEL, X, ["diag"], vectors=1, per_layer=False).measurements["diag"]
    assert measured.total.cosine is not None
    assert measured.total.cosine.standard_error is None
    assert measured.layers == {}


def test_what_a_representation_refuses_is_missing_with_the_reason() -> None:
    found = compare_representations(MODEL, X, ["kfac", "dense", "diag"], dampings=[0.0, 1.0], vectors=2)
    kfac, dense = found.measurements["kfac"], found.measurements["dense"]
    assert not kfac.built and kfac.total.cosine is None and kfac.layers == {}
    assert list(kfac.unavailable) == ["build"]
    assert "layer '1': ScaleShiftJacobian is not a sum of Kronecker products" in kfac.unavailable["build"]
    assert dense.total.solve_residuals[0] is None and dense.total.solve_residuals[1] is not None
    assert list(dense.unavailable) == ["solve with r = 0", "layers: solve with r = 0"]
    assert "singular" in dense.unavailable["solve with r = 0"]
    assert "n/a" in str(found) and "Not available" in str(found)
    assert found.recommendation.startswith("Recommendation: dense for products and solves")


def test_blocks_that_are_too_large_to_be_formed_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nngeo_core.verbs.comparison.blocks.LARGEST_BLOCKS", 100)
    found = compare_representations(MODEL, X, ["lowrank", "diag"], vectors=2)
    assert found.measurements["lowrank"].layers == {}
    assert "have 8.4e+02 entries, more than 1.0e+02" in found.measurements["lowrank"].unavailable["layers"]
    assert list(found.measurements["diag"].layers) == list(PLACES)


def test_a_dead_layer_agrees_where_both_are_zero() -> None:
    model = deepcopy(MODEL)
    nn.init.zeros_(model[4].weight)
    found = compare_representations(model, X, {"eye": "eye", "diag": PMatDiag}, dampings=[1.0], vectors=2)
    dead = found.measurements["diag"].layers["0"]
    assert (dead.trace_error, dead.form_error.mean, dead.cosine.mean) == (0, 0, 1)  # type: ignore[union-attr]
    assert dead.solve_residuals[0].mean == 0  # type: ignore[union-attr]
    wrong = found.measurements["eye"].layers["0"]
    assert (wrong.trace_error, wrong.form_error) == (None, None)
    assert wrong.cosine is not None and wrong.cosine.mean == 0


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scales_of_the_matrix_in_float32(scale: float) -> None:
    model = nn.Linear(3, 2)
    x = torch.randn(5, 3, generator=seeded()) * scale
    found = compare_representations(model, x, ["dense", "diag"], variant="regression", vectors=3)
    total = found.measurements["dense"].total
    assert total.cosine is not None and total.cosine.mean == pytest.approx(1, abs=1e-5)
    assert all(one is not None and one.mean < 1e-3 for one in total.solve_residuals)


def test_the_model_is_left_untouched() -> None:
    model = net()
    before, state = deepcopy(model.state_dict()), torch.get_rng_state()
    compare_representations(
        model, DataLoader(X, shuffle=True, batch_size=4), ["diag", MIXED], function=model, vectors=2
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_mapping_that_does_not_fit_is_refused_before_anything_is_computed() -> None:
    class Unread:
        def __iter__(self) -> Any:
            raise AssertionError("the data were read")

    with pytest.raises(LayerCollectionMismatchError, match=r"no key of the mapping means the layers \['0', '1'\]"):
        compare_representations(MODEL, Unread(), ["diag", {nn.Linear: "kfac"}])
    choices = ["diag", {nn.Linear: "implicit", None: "diag"}]
    found = compare_representations(MODEL, X, choices, vectors=1).measurements["Linear: implicit, rest: diag"]
    assert "stores no sums over the examples" in found.unavailable["build"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"representations": ["diag", "kfak"]}, PluginError, "unknown pmat representation 'kfak'; known: .*'ekfac'"),
        ({"representations": []}, ValueError, "representations is empty"),
        ({"representations": "diag"}, TypeError, "a list such as"),
        ({"representations": ["diag", "diag"]}, ValueError, "diag is given twice"),
        ({"representations": {nn.Linear: "kfac"}}, TypeError, "put it in a list"),
        ({"representations": [{nn.Conv1d: "kfac", None: "diag"}]}, ValueError, "it means no layer"),
        ({"dampings": [-1.0]}, ValueError, "finite number >= 0"),
        ({"dampings": [0.1, 0.1]}, ValueError, "different numbers"),
        ({"dampings": []}, ValueError, "at least one"),
        ({"vectors": 0}, ValueError, "at least 1; got 0"),
        ({"trials": 0}, ValueError, "at least 1; got 0"),
        ({"n_output": 7}, ValueError, "n_output=7 was given"),
        ({"loader": iter([X])}, ValueError, "can be iterated again|read only once"),
        ({"loader": []}, (TypeError, ValueError), "no examples|batch"),
        ({"layer_collection": LayerCollection({"7": LinearLayer(1, 1)})}, ValueError, "no parameter"),
    ],
)
def test_bad_input(given: dict[str, Any], error: Any, message: str) -> None:
    arguments: dict[str, Any] = {"model": MODEL, "loader": X, "representations": ["diag"]}
    with pytest.raises(error, match=message):
        compare_representations(**{**arguments, **given})
