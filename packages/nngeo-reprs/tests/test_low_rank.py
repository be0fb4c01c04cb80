"""PMatLowRank: the rows of the Jacobians, and the spectral form that sums and inverses have."""

import pytest
import torch
from torch import Tensor

from nngeo_core import (
    FIM,
    LayerCollection,
    LinearLayer,
    NonFiniteError,
    NotPositiveDefiniteError,
    PMat,
    PVector,
    ShapeError,
    UnsupportedOperationError,
)
from nngeo_core.plugins import registry
from nngeo_core.testing import PMatAlgebraContract, PMatContract, relative_error
from nngeo_core.testing.models import mlp
from nngeo_reprs import PMatDense, PMatEye, PMatLowRank

LAYERS = LayerCollection({"a": LinearLayer(2, 1), "b": LinearLayer(2, 2)})
D = LAYERS.numel()
REGUL = 1e-8


def _rows(k: int, d: int = D, seed: int = 0) -> Tensor:
    return torch.randn(k, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _from(rows: Tensor) -> PMatLowRank:
    return PMatLowRank(data=rows, layer_collection=LAYERS)


class TestPMatLowRank(PMatContract):
    representation = PMatLowRank
    unsupported = frozenset({"mm"})


class TestPMatLowRankFromRows(PMatAlgebraContract):
    unsupported = frozenset({"mm"})

    def build(self, layers: LayerCollection, seed: int) -> PMat:
        return PMatLowRank(data=_rows(2, layers.numel(), seed), layer_collection=layers)


class TestPMatLowRankFromManyRows(PMatAlgebraContract):
    unsupported = frozenset({"mm"})

    def build(self, layers: LayerCollection, seed: int) -> PMat:
        return PMatLowRank(data=_rows(layers.numel() + 3, layers.numel(), seed), layer_collection=layers)


class TestPMatLowRankWithShift(PMatAlgebraContract):
    unsupported = frozenset({"mm"})

    def build(self, layers: LayerCollection, seed: int) -> PMat:
        d = layers.numel()
        rows, _ = torch.linalg.qr(_rows(d, d, seed))
        m = (d + 1) // 2
        values = torch.linspace(1, 3, m, dtype=torch.float64)
        data = {"values": values, "vectors": rows.T[:m].contiguous(), "shift": torch.tensor(0.5, dtype=torch.float64)}
        return PMatLowRank(data=data, layer_collection=layers)

    def test_data_changed_in_place(self, matrix: PMat) -> None:
        """Other values are seen; vectors that are no longer orthonormal are the caller's doing."""
        v, twice = PVector(matrix.layer_collection, _rows(1, matrix.layer_collection.numel())[0]), matrix * 1.0
        before = twice.solve(v, 0.1)
        twice.tensors()["values"].mul_(2.0)
        twice.tensors()["shift"].mul_(2.0)
        assert (
            relative_error(twice.solve(v, 0.2).get_flat_representation(), before.get_flat_representation() / 2) <= 1e-12
        )


DEGENERATE = {
    "rank-deficient": _rows(2, seed=1).repeat(3, 1),
    "one-row": _rows(1),
    "zero": torch.zeros(2, D, dtype=torch.float64),
    "dead-layer": _rows(4) * torch.cat((torch.zeros(3), torch.ones(6))),
    "many-rows": _rows(2 * D),
    "many-equal-rows": _rows(1).expand(2 * D, D),
    "many-scales": _rows(5) * torch.logspace(-6, 6, 5, dtype=torch.float64).unsqueeze(1),
}


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("case", DEGENERATE)
def test_nothing_outside_the_span_is_dropped(case: str, scale: float) -> None:
    rows = DEGENERATE[case] * scale**0.5
    matrix, dense = _from(rows), rows.T @ rows
    size = float(dense.norm()) or scale
    for regul in (1e-8 * size, size):
        damped = dense + regul * torch.eye(D, dtype=torch.float64)
        for right in (_rows(2, seed=3), _rows(2, len(rows), seed=3) @ rows / size**0.5):
            for x in (matrix.solve(right, regul), matrix.inverse(regul).mv(right)):
                assert (x @ damped - right).norm() <= 1e-13 * (damped.norm() * x.norm() + right.norm())
        # of the other order of magnitude, det(M + r I) = r^(d - k) det(J J^T + r I)
        expected = torch.linalg.eigvalsh(dense).clamp(min=0).add(regul).log().sum()
        assert abs(matrix.logdet(regul) - expected) <= 1e-6 * abs(expected)
    assert relative_error(matrix.sqrt().get_dense_tensor() @ matrix.sqrt().get_dense_tensor(), dense) <= 1e-12
    assert matrix.norm(2) == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-12)


def test_a_difference_is_indefinite_and_exact() -> None:
    first, second = _from(_rows(2)), _from(_rows(3, seed=1))
    difference = first - second
    dense = first.get_dense_tensor() - second.get_dense_tensor()
    x = difference.solve(_rows(2, seed=2), 0.3)
    damped = dense + 0.3 * torch.eye(D, dtype=torch.float64)
    assert (x @ damped - _rows(2, seed=2)).norm() <= 1e-12 * damped.norm() * x.norm()
    assert relative_error(difference.norm(), dense.norm()) <= 1e-12
    assert relative_error((difference + first).get_dense_tensor(), dense + first.get_dense_tensor()) <= 1e-12
    assert (difference - difference).get_dense_tensor().norm() <= 1e-13 * dense.norm()
    with pytest.raises(NotPositiveDefiniteError, match="negative eigenvalue"):
        difference.sqrt()
    with pytest.raises(NotPositiveDefiniteError, match="is not positive definite"):
        difference.logdet(1e-3)


def test_sums_are_recompressed() -> None:
    total = _from(_rows(2))
    for _ in range(4):
        total = total + _from(_rows(2))
    assert isinstance(total.data, Tensor)
    assert total.data.shape == (2, D)
    assert relative_error(total.get_dense_tensor(), 5 * _from(_rows(2)).get_dense_tensor()) <= 1e-13
    for seed in range(5):
        total = total + _from(_rows(3, seed=seed))
    assert total.data.shape == (D, D)  # type: ignore[union-attr]


def test_more_rows_than_parameters_become_as_many() -> None:
    case = mlp(widths=(1, 1, 2), n_examples=20)
    matrix, dense = FIM(case.model, case.inputs, [PMatLowRank, PMatDense])
    d = dense.size(0)
    assert matrix.data.shape == (d, d)
    assert relative_error(matrix.get_dense_tensor(), dense.get_dense_tensor()) <= 1e-13


def test_the_inverse_has_its_largest_eigenvalues_outside_of_the_span() -> None:
    inverse = _from(_rows(2)).inverse(0.1)
    assert len(inverse.eigendecomposition().values) == 2
    assert inverse.norm(2).item() == pytest.approx(10, rel=1e-12)
    with pytest.raises(UnsupportedOperationError, match=r"eigenvalue 10 is among the 1 leading ones .*; eigendec"):
        inverse.eigendecomposition(1)


def test_norms_of_a_shifted_matrix_do_not_cancel() -> None:
    """Blocks larger and smaller than the number of vectors."""
    for k in (1, 4):
        shifted = _from(_rows(k)).inverse(REGUL)
        dense = shifted.get_dense_tensor()
        for layer_id, place in LAYERS.slices().items():
            assert relative_error(shifted.norm_per_layer()[layer_id], dense[place, place].norm()) <= 1e-12
        assert relative_error(shifted.norm(), dense.norm()) <= 1e-12
        assert relative_error(shifted.convert("blockdiag").data["a"], dense[:3, :3]) <= 1e-12


def test_averages_are_recompressed() -> None:
    case = mlp()
    matrix = FIM(case.model, case.inputs[:2], PMatLowRank)
    dense = FIM(case.model, case.inputs[:2], PMatDense)
    for _ in range(3):
        matrix.update(case.inputs[2:], 0.5)
        dense.update(case.inputs[2:], 0.5)
    assert matrix.n_examples == dense.n_examples
    assert matrix.data.shape[0] <= 3 * len(case.inputs)  # type: ignore[union-attr]
    assert relative_error(matrix.get_dense_tensor(), dense.get_dense_tensor()) <= 1e-12


def test_undamped_it_is_singular_and_says_which_damping_works() -> None:
    with pytest.raises(NotPositiveDefiniteError, match="is singular to working precision"):
        _from(_rows(2)).solve(_rows(1), 0)
    shifted = _from(_rows(2)) + PMatEye(layer_collection=LAYERS, scaling=0.5)
    assert relative_error(shifted.mv(shifted.solve(_rows(1), 0)), _rows(1)) <= 1e-13


def test_products_are_refused() -> None:
    with pytest.raises(UnsupportedOperationError, match="span different spaces.*; apply their products"):
        _from(_rows(2)).mm(_from(_rows(2)))


def test_it_is_registered() -> None:
    assert registry.representation("lowrank") is PMatLowRank


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.ones(2, D - 1), ShapeError, rf"rows of shape \(k, {D}\), .*; got \(2, {D - 1}\)"),
        ([1.0], ShapeError, "got list"),
        ({"values": torch.ones(1)}, ShapeError, "got NoneType"),
        ({"values": torch.ones(2), "vectors": torch.ones(1, D), "shift": torch.tensor(0.0)}, ShapeError, "of shapes"),
        ({"values": torch.ones(1), "vectors": torch.ones(1, D), "shift": torch.tensor(0.0)}, ValueError, "orthonormal"),
        (torch.full((1, D), float("nan")), NonFiniteError, "NaN or infinite"),
    ],
)
def test_other_data_is_refused(data: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PMatLowRank(data=data, layer_collection=LAYERS)
