"""PMatEye: multiples of the identity."""

import pytest
import torch
from torch import Tensor

from nngeo_core import LayerCollection, LinearLayer, NonFiniteError, NotPositiveDefiniteError, PMat, ShapeError
from nngeo_core.testing import Case, PMatAlgebraContract, PMatContract
from nngeo_reprs import PMatDiag, PMatEye

LAYERS = LayerCollection({"fc": LinearLayer(2, 1)})


class TestPMatEye(PMatContract):
    representation = PMatEye

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        exact = super().dense_value(case, layers, variant)
        return exact.trace() / len(exact) * torch.eye(len(exact), dtype=exact.dtype)


class TestPMatEyeFromData(PMatAlgebraContract):
    def build(self, layers: LayerCollection, seed: int) -> PMat:
        return PMatEye(layer_collection=layers, scaling=seed + 0.5)


def test_a_tensor_gives_dtype_and_device_and_a_number_loses_nothing() -> None:
    assert PMatEye(layer_collection=LAYERS, scaling=torch.tensor(2.0)).dtype == torch.float32
    assert PMatEye(layer_collection=LAYERS, scaling=0.1).get_diag().tolist() == [0.1, 0.1, 0.1]
    single = PMatDiag(data=torch.ones(3), layer_collection=LAYERS) + PMatEye(layer_collection=LAYERS, scaling=1.0)
    assert (single.dtype, single.get_diag().tolist()) == (torch.float32, [2.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("scaling", "error", "message"),
    [
        (torch.ones(2), ShapeError, r"one real number, got shape \(2,\)"),
        (torch.tensor(1), ShapeError, "dtype torch.int64"),
        (float("nan"), NonFiniteError, "is nan"),
        ("2", TypeError, "got str"),
        (True, TypeError, "got bool"),
        (None, ValueError, "got neither"),
    ],
)
def test_what_is_no_scaling(scaling: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PMatEye(layer_collection=LAYERS, scaling=scaling)  # type: ignore[arg-type]


def test_a_sum_with_a_number_names_the_multiple_of_the_identity() -> None:
    with pytest.raises(
        TypeError, match=r"the sum of PMatDiag with int: .* c I is PMatEye\(layer_collection=\.\.\., scaling=c\)"
    ):
        PMatDiag(data=torch.ones(3), layer_collection=LAYERS) + 1


def test_data_and_scaling_are_one() -> None:
    with pytest.raises(ValueError, match="give either `data` or `scaling`"):
        PMatEye(data=torch.tensor(1.0), layer_collection=LAYERS, scaling=1.0)


def test_zero_is_not_inverted() -> None:
    with pytest.raises(NotPositiveDefiniteError, match="with regul="):
        PMatEye(layer_collection=LAYERS, scaling=0.0).inverse(0)
    assert PMatEye(layer_collection=LAYERS, scaling=0.0).pinv().trace() == 0
