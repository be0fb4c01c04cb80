"""PMatSum: sums of any representations."""

from typing import Any

import pytest
import torch

import nngeo_reprs.sum
from nngeo_core import (
    FIM,
    ConvergenceError,
    LayerCollection,
    LayerCollectionMismatchError,
    LinearLayer,
    NotPositiveDefiniteError,
    PMat,
    UnsupportedOperationError,
)
from nngeo_core.testing import PMatAlgebraContract, relative_error
from nngeo_core.testing.models import mlp
from nngeo_reprs import PMatDense, PMatDiag, PMatEye, PMatKFAC, PMatSum

LAYERS = LayerCollection({"a": LinearLayer(2, 1), "b": LinearLayer(1, 2)})
D = LAYERS.numel()


def _dense(layers: LayerCollection = LAYERS, seed: int = 0, dtype: torch.dtype = torch.float64) -> PMatDense:
    rows = torch.randn(2, layers.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return PMatDense(data=rows.T @ rows, layer_collection=layers, n_examples=4, likelihood="regression")


def _diagonal(layers: LayerCollection = LAYERS, seed: int = 0) -> PMatDiag:
    generator = torch.Generator().manual_seed(seed)
    return PMatDiag(data=torch.rand(layers.numel(), dtype=torch.float64, generator=generator), layer_collection=layers)


def _stranger() -> PMatDiag:
    return _diagonal(LayerCollection({"stranger": LinearLayer(2, 1)}))


class TestPMatSum(PMatAlgebraContract):
    unsupported = frozenset(
        {"eigendecomposition", "inverse", "logdet", "mm", "pinv", "sample", "smallest_singular_value", "sqrt"}
    )

    def build(self, layers: LayerCollection, seed: int) -> PMat:
        return PMatSum([_dense(layers, seed), _diagonal(layers, seed)])

    def test_data_or_examples(self, matrix: PMat) -> None:
        """It is made from matrices."""
        for parts, error, message in (
            ([], ValueError, "has no parts"),
            ([matrix, 1.0], TypeError, "are matrices, got float"),
            ([matrix, _stranger()], LayerCollectionMismatchError, "stranger"),
        ):
            given: Any = parts
            with pytest.raises(error, match=message):
                PMatSum(given)


def test_sums_are_made_and_flattened() -> None:
    dense, diagonal, eye = _dense(), _diagonal(), PMatEye(layer_collection=LAYERS, scaling=2.0)
    first = PMatSum([dense, eye])
    expected = dense.get_dense_tensor() + 2 * torch.eye(D, dtype=torch.float64)
    for total, sign in ((first + diagonal, 1), (diagonal + first, 1), (first - diagonal, -1)):
        assert isinstance(total, PMatSum)
        assert len(total.parts) == 3
        assert relative_error(total.get_dense_tensor(), expected + sign * diagonal.get_dense_tensor()) <= 1e-14
    difference = diagonal - first
    assert relative_error(difference.get_dense_tensor(), diagonal.get_dense_tensor() - expected) <= 1e-14
    assert (first.likelihood, (first + eye).parts[-1].trace().item()) == ("regression", 2.0 * D)


def test_an_identity_takes_the_others_dtype() -> None:
    total = PMatSum([PMatEye(layer_collection=LAYERS, scaling=0.5), _dense(dtype=torch.float32)])
    assert total.dtype == torch.float32
    with pytest.raises(ValueError, match=r"one dtype and device, got .*float32.*use part.to"):
        PMatSum([_dense(), _dense(dtype=torch.float32)])


def test_the_bytes_and_the_text_are_those_of_all_parts() -> None:
    total = PMatSum([_dense(), _diagonal()])
    assert total.nbytes == 8 * (D * D + D)
    assert repr(total).splitlines()[0].startswith(f"PMatSum({D} x {D}, an unknown number of examples, ")
    assert repr(total).splitlines()[1].startswith("  + PMatDense(")


def test_kfac_plus_a_diagonal_is_solved_with_a_preconditioner() -> None:
    case = mlp()
    kfac, diagonal = FIM(case.model, case.inputs, [PMatKFAC, PMatDiag])
    total = PMatSum([kfac, diagonal])
    rows = torch.randn(2, diagonal.size(0), dtype=torch.float64)  # type: ignore[arg-type]
    dense = total.get_dense_tensor() + 1e-3 * torch.eye(diagonal.size(0), dtype=torch.float64)  # type: ignore[arg-type]
    plain, better = total.solve(rows, 1e-3), total.solve(rows, 1e-3, preconditioner=diagonal, tol=1e-13)
    for x in (plain, better):
        assert (x @ dense - rows).norm() <= 1e-12 * (dense.norm() * x.norm() + rows.norm())
    assert relative_error(total.convert("diag").data, dense.diagonal() - 1e-3) <= 1e-12


def test_blocks_are_added() -> None:
    total = PMatSum([_dense(), _diagonal()])
    blocks = total.convert("blockdiag")
    for layer_id, place in LAYERS.slices().items():
        assert relative_error(blocks.data[layer_id], total.get_dense_tensor()[place, place]) <= 1e-14


def test_what_cannot_be_solved_says_so() -> None:
    rows = torch.ones(1, D, dtype=torch.float64)
    with pytest.raises(NotPositiveDefiniteError, match=r"the PMatSum \+ 0.1 I is not positive definite"):
        PMatSum([_diagonal(), -10 * _dense()]).solve(rows, 0.1)
    with pytest.raises(ConvergenceError, match="after 1 iterations"):
        PMatSum([_diagonal(), _dense()]).solve(rows, 0.1, max_iterations=1)
    with pytest.raises(UnsupportedOperationError, match="not symmetric.*; compute the factors"):
        PMatSum([_dense().mm(_dense(seed=1)), _diagonal()]).solve(rows)
    with pytest.raises(TypeError, match="a preconditioner is a matrix"):
        PMatSum([_dense()]).solve(rows, preconditioner=torch.eye(D))  # type: ignore[call-overload]


def test_averages_and_large_norms_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    total = PMatSum([_dense(), _diagonal()])
    with pytest.raises(UnsupportedOperationError, match="; update the parts"):
        total.update(torch.ones(1, 1), 0.5)
    with pytest.raises(UnsupportedOperationError, match="ask the parts one by one"):
        total.get_dense_tensor(split_weight_bias=False)
    monkeypatch.setattr(nngeo_reprs.sum, "LARGEST_NORM", D - 1)
    with pytest.raises(UnsupportedOperationError, match=f"for {D} parameters.*; up to {D - 1} it is exact"):
        total.norm()


def test_many_unit_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nngeo_reprs.sum, "_ROWS", 2)
    total = PMatSum([_dense(), _diagonal()])
    assert relative_error(total.norm(), total.get_dense_tensor().norm()) <= 1e-14
    for layer_id, place in LAYERS.slices().items():
        assert relative_error(total.norm_per_layer()[layer_id], total.get_dense_tensor()[place, place].norm()) <= 1e-14
