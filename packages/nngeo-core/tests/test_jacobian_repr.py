"""Jacobians are printed by their sizes, and printing forms nothing."""

import pytest
import torch

from nngeo_core import (
    DenseJacobian,
    IndexJacobian,
    KroneckerJacobian,
    KroneckerLayout,
    LayerJacobian,
    ScaleShiftJacobian,
    SumJacobian,
)


def _never() -> torch.Tensor:
    raise AssertionError("printing cut the patches")


DENSE = DenseJacobian(torch.ones(2, 5, 12))
JACOBIANS: list[LayerJacobian] = [
    DENSE,
    IndexJacobian(torch.zeros(5, 2, dtype=torch.int64), torch.ones(2, 5, 2, 3), 4),
    KroneckerJacobian(_never, torch.ones(2, 5, 1, 1, 3), KroneckerLayout(1, 3, 4, False)),
    ScaleShiftJacobian(torch.ones(5, 2, 6), torch.ones(2, 5, 2, 6), True),
    SumJacobian((DENSE, DENSE)),
]


@pytest.mark.parametrize("jacobian", JACOBIANS, ids=lambda jacobian: type(jacobian).__name__)
def test_sizes_dtype_and_device(jacobian: LayerJacobian) -> None:
    expected = f"{type(jacobian).__name__}(2 directions, 5 examples, 12 parameters, torch.float32, cpu)"
    assert repr(jacobian) == expected
