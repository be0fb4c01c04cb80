"""Kernels tile by tile: chunks that change on the way, progress, and memory that is not there."""

from typing import Any

import pytest
import torch

from nngeo_core import FVector, GramMatrix, Jacobian, LayerCollection, NotPositiveDefiniteError, ShapeError
from nngeo_core.plugins import registry
from nngeo_core.testing import MODELS, relative_error
from nngeo_ntk.chunks import Source
from nngeo_ntk.kernels import compute_kernel
from nngeo_ntk.recorded import Recorded


def test_a_sweep_that_starts_within_an_example_goes_on_there() -> None:
    case = MODELS["mlp-five-outputs"]()
    narrow, wide = (registry.generator("hooks")(case.model, "regression", memory_budget=b) for b in (1, 10**6))
    recorded = Recorded.of(narrow, case.inputs)
    whole = Source(wide, recorded, None, "all")
    for generator in (narrow, wide):  # slices of one direction, and of all of them
        rest = list(Source(generator, recorded, None, "all").arriving(2, 3))
        assert (rest[0].first, rest[0].batch.directions.start) == (2, 3)
        covered = sum(one.batch.n_examples * (one.batch.directions.stop - one.batch.directions.start) for one in rest)
        assert covered == 5 * 5 - 3
    assert next(whole.arriving()).batch.n_examples == 7


@pytest.mark.parametrize("others", [None, 2])
def test_progress_counts_pairs_of_examples(others: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    case = MODELS["mlp"]()
    columns = None if others is None else case.inputs[:others]
    GramMatrix(case.model, case.inputs, loader2=columns, memory_budget=4096, progress=True)
    total = 49 if others is None else 14
    assert f"{total}/{total}" in capsys.readouterr().err


def test_a_kernel_that_does_not_fit_says_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    case = MODELS["mlp"]()
    generator = registry.generator("hooks")(case.model, "regression", check="off")
    empty = torch.empty

    def refusing(shape: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if shape == (3, 7, 3, 7):
            raise RuntimeError("not enough memory")
        return empty(shape, *args, **kwargs)

    monkeypatch.setattr(torch, "empty", refusing)
    with pytest.raises(MemoryError, match=r"a kernel of shape \(3, 7, 3, 7\) takes .* give out="):
        compute_kernel(generator, case.inputs)


def test_a_buffer_that_held_something_else_is_overwritten() -> None:
    case = MODELS["mlp"]()
    for representation, shape in (("trace", (7, 7)), ("blockdiag", (3, 7, 7))):
        buffer = torch.full(shape, 9.0, dtype=torch.float64)
        found = GramMatrix(case.model, case.inputs, representation, out=buffer)
        expected = GramMatrix(case.model, case.inputs, representation)
        assert relative_error(buffer, expected.data) == 0  # type: ignore[attr-defined]
        assert found.data.data_ptr() == buffer.data_ptr()  # type: ignore[attr-defined]


@pytest.mark.parametrize("representation", ["dense", "trace"])
def test_outputs_without_values_are_refused(representation: str) -> None:
    model = torch.nn.Linear(2, 1)
    for compute in (GramMatrix, Jacobian):
        with pytest.raises(ShapeError, match="no output for any example"):
            compute(
                model, torch.ones(3, 2), "dense" if compute is Jacobian else representation, lambda x: model(x)[:, :0]
            )


def test_layers_without_gradient_have_a_kernel_of_zeros() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    torch.nn.init.zeros_(model[1].weight)
    kernel = GramMatrix(model, torch.zeros(4, 2), layer_collection=LayerCollection.from_model(model, only=["0"]))
    assert kernel.norm().item() == 0
    u = FVector(torch.ones(1, 4))
    assert kernel.solve(u, 0.5).vector_repr.tolist() == [[2.0] * 4]
    assert kernel.eigendecomposition().values.tolist() == [0.0] * 4
    with pytest.raises(NotPositiveDefiniteError, match="singular to working precision"):
        kernel.solve(u, 0.0)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_kernels_of_any_scale_are_solved_and_decomposed(scale: float) -> None:
    case = MODELS["mlp"]()
    kernel = GramMatrix(case.model, case.inputs) * scale
    u = FVector(torch.ones(3, 7, dtype=torch.float64))
    flat = kernel.get_dense_tensor().reshape(21, 21)
    found = kernel.solve(u, 0.1 * scale).get_flat_representation()
    assert relative_error(flat @ found + 0.1 * scale * found, u.get_flat_representation()) <= 1e-10
    assert relative_error(kernel.eigendecomposition().values, torch.linalg.eigvalsh(flat)) <= 1e-10
