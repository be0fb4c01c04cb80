"""PMatDense: all entries of the Fisher matrix."""

import re

import pytest
import torch

from nngeo_core import (
    FIM,
    LayerCollection,
    LinearLayer,
    NonFiniteError,
    NotPositiveDefiniteError,
    PMat,
    PVector,
    ShapeError,
    random_pvector,
)
from nngeo_core.testing import MODELS, PMatAlgebraContract, PMatContract, relative_error
from nngeo_core.testing.models import mlp
from nngeo_reprs import PMatDense, PMatDiag

LAYERS = LayerCollection({"fc": LinearLayer(2, 1)})


class TestPMatDense(PMatContract):
    representation = PMatDense


class TestPMatDenseFromData(PMatAlgebraContract):
    def build(self, layers: LayerCollection, seed: int) -> PMat:
        generator, d = torch.Generator().manual_seed(seed), layers.numel()
        rows = torch.randn(2, d, dtype=torch.float64, generator=generator)
        return PMatDense(data=rows.T @ rows, layer_collection=layers)


def _dense(rows: list[list[float]], symmetric: bool = True) -> PMatDense:
    return PMatDense(data=torch.tensor(rows, dtype=torch.float64), layer_collection=LAYERS, symmetric=symmetric)


def _vector(layers: LayerCollection = LAYERS) -> PVector:
    return random_pvector(layers, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", MODELS)
def test_a_singular_fisher_matrix_is_refused_and_the_damping_named_works(model: str) -> None:
    case = MODELS[model]()
    matrix = FIM(case.model, case.inputs, PMatDense)  # a softmax does not see a shift of all logits: always singular
    v, dense = _vector(matrix.layer_collection), matrix.get_dense_tensor()
    with pytest.raises(NotPositiveDefiniteError, match=r"the matrix \+ 0 I is singular to working precision") as caught:
        matrix.solve(v, regul=0)
    regul = float(re.search(r"regul=(\S+) or more", str(caught.value))[1])  # type: ignore[index]
    assert regul <= 1e-9 * dense.norm()
    x = matrix.solve(v, regul).get_flat_representation()
    residual = dense @ x + regul * x - v.get_flat_representation()
    assert residual.norm() <= 1e-12 * dense.norm() * x.norm()
    with pytest.raises(NotPositiveDefiniteError, match="with regul="):
        matrix.inverse(0)


def test_a_difference_is_indefinite_and_solved_all_the_same() -> None:
    matrix = _dense([[1, 0, 0], [0, -2, 0], [0, 0, 3]])
    v = PVector(LAYERS, vector_repr=torch.ones(3, dtype=torch.float64))
    assert matrix.solve(v, regul=0.5).get_flat_representation().tolist() == pytest.approx([2 / 3, -2 / 3, 2 / 7])


def test_a_product_is_solved_by_lu() -> None:
    matrix = _dense([[0, 1, 0], [2, 0, 0], [0, 0, 3]], symmetric=False)
    v = PVector(LAYERS, vector_repr=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert matrix.solve(v, regul=0).get_flat_representation().tolist() == pytest.approx([1, 1, 1])
    expected = torch.linalg.inv(matrix.data)
    assert relative_error(matrix.inverse(0).get_dense_tensor(), expected) <= 1e-12
    assert not matrix.inverse(0).symmetric


def test_an_inverse_is_exactly_symmetric() -> None:
    case = mlp()
    inverse = FIM(case.model, case.inputs, PMatDense).inverse(1e-6).get_dense_tensor()
    assert torch.equal(inverse, inverse.T)


def test_the_stored_tensor_is_handed_out_and_the_diagonal_copied() -> None:
    matrix = _dense([[1, 0, 0], [0, 2, 0], [0, 0, 3]])
    matrix.get_diag().zero_()
    assert matrix.trace().item() == 6
    assert matrix.get_dense_tensor() is matrix.data


def test_another_representation_is_no_partner() -> None:
    diagonal = PMatDiag(data=torch.ones(3, dtype=torch.float64), layer_collection=LAYERS)
    matrix = _dense([[1, 0, 0], [0, 2, 0], [0, 0, 3]])
    for combine in (lambda: matrix + diagonal, lambda: matrix - diagonal, lambda: matrix.mm(diagonal)):
        with pytest.raises(NotImplementedError, match="with PMatDiag is not a PMatDense; compute both matrices in one"):
            combine()


@pytest.mark.parametrize(
    ("data", "given"), [(torch.ones(3), r"\(3,\)"), (torch.ones(2, 2), r"\(2, 2\)"), ([1.0], "list")]
)
def test_other_data_is_refused(data: object, given: str) -> None:
    with pytest.raises(ShapeError, match=rf"tensor of shape \(3, 3\), got {given}"):
        PMatDense(data=data, layer_collection=LAYERS)


def test_infinity_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        _dense([[float("inf"), 0, 0], [0, 1, 0], [0, 0, 1]])
