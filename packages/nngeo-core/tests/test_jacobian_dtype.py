"""Jacobians in another dtype, that of a model's other layers."""

import pytest
import torch
from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.jacobians.index import IndexJacobian
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.jacobians.scale_shift import ScaleShiftJacobian
from nngeo_core.jacobians.sum import SumJacobian

DENSE = DenseJacobian(torch.rand(2, 5, 12))
MASK = torch.rand(5, 2) > 0.3
JACOBIANS: dict[str, LayerJacobian] = {
    "dense": DENSE,
    "index": IndexJacobian(torch.zeros(5, 2, dtype=torch.int64), torch.rand(2, 5, 2, 3), 4, MASK),
    "kronecker": KroneckerJacobian(
        lambda: torch.ones(5, 2, 1, 4) / 3, torch.rand(2, 5, 2, 1, 3), KroneckerLayout(1, 3, 4, False), MASK
    ),
    "scale_shift": ScaleShiftJacobian(torch.rand(5, 2, 6), torch.rand(2, 5, 2, 6), True),
    "sum": SumJacobian((DENSE, DENSE)),
}


@pytest.mark.parametrize("jacobian", JACOBIANS.values(), ids=JACOBIANS)
def test_all_digits_and_the_structure_stay(jacobian: LayerJacobian) -> None:
    found = jacobian.to(torch.float64)
    assert (type(found), found.dtype, found.shape) == (type(jacobian), torch.float64, jacobian.shape)
    assert torch.allclose(found.to_dense(), jacobian.to_dense().double(), rtol=1e-6)
    assert torch.equal(found.to(torch.float32).to_dense(), jacobian.to_dense())
    assert getattr(found, "mask", None) is getattr(jacobian, "mask", None)


class OfOneDtype(LayerJacobian):
    shape = (1, 1, 1)
    dtype = torch.float32
    device = torch.device("cpu")

    def to_dense(self) -> Tensor:
        return torch.ones(1, 1, 1)


def test_a_structure_of_one_s_own_may_have_one_dtype() -> None:
    jacobian = OfOneDtype()
    assert jacobian.to(torch.float32) is jacobian
    with pytest.raises(UnsupportedOperationError, match="a OfOneDtype in torch.float32 cannot become torch.float64"):
        jacobian.to(torch.float64)
