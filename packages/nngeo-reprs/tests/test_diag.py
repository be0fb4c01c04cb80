"""PMatDiag: the diagonal of the Fisher matrix."""

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
)
from nngeo_core.testing import Case, PMatAlgebraContract, PMatContract
from nngeo_reprs import PMatDiag

LAYERS = LayerCollection({"fc": LinearLayer(2, 1)})


class TestPMatDiag(PMatContract):
    representation = PMatDiag

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        return super().dense_value(case, layers, variant).diagonal().diag()


class TestPMatDiagFromData(PMatAlgebraContract):
    def build(self, layers: LayerCollection, seed: int) -> PMat:
        generator = torch.Generator().manual_seed(seed)
        return PMatDiag(data=torch.rand(layers.numel(), generator=generator).double(), layer_collection=layers)


def _diag(*entries: float) -> PMatDiag:
    return PMatDiag(data=torch.tensor(entries, dtype=torch.float64), layer_collection=LAYERS)


def test_a_product_of_diagonals_stays_symmetric() -> None:
    assert _diag(1, 2, 3).mm(_diag(2, 2, 2)).symmetric


def test_tiny_entries_are_divided_by_and_zeros_refused() -> None:
    v = PVector(LAYERS, vector_repr=torch.ones(3, dtype=torch.float64))
    solution = _diag(1.0, 1e-30, 2.0).solve(v, regul=0).get_flat_representation()
    assert solution.tolist() == pytest.approx([1.0, 1e30, 0.5])
    with pytest.raises(NotPositiveDefiniteError, match=r"the diagonal \+ 0 I is singular .*with regul="):
        _diag(1.0, 0.0, 2.0).solve(v, regul=0)
    with pytest.raises(NotPositiveDefiniteError, match="with regul="):
        _diag(1.0, 0.0, 2.0).inverse(0)


@pytest.mark.parametrize(
    ("data", "given"), [(torch.ones(2), r"\(2,\)"), (torch.ones(3, 3), r"\(3, 3\)"), ([1.0], "list")]
)
def test_other_data_is_refused(data: object, given: str) -> None:
    with pytest.raises(ShapeError, match=rf"tensor of shape \(3,\), got {given}"):
        PMatDiag(data=data, layer_collection=LAYERS)


def test_nan_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        _diag(1.0, float("nan"), 2.0)


def test_the_diagonal_is_a_copy() -> None:
    matrix = _diag(1, 2, 3)
    matrix.get_diag().zero_()
    assert matrix.trace().item() == 6


@pytest.mark.parametrize("representation", ["diag", "quasidiag", "ekfac"])
def test_sums_over_many_examples_keep_their_digits(representation: str) -> None:
    x = torch.rand(300_000, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([x.double().square().mean(0), torch.ones(1)])
    found = FIM(torch.nn.Linear(2, 1), x, representation, variant="regression").get_diag()
    assert torch.allclose(found.double(), expected, rtol=5e-6)
