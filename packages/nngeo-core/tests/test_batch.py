"""JacobianBatch: what a slice says about itself, and its dense form."""

import torch

from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.dense import DenseJacobian


def batch(start: int, stop: int, layers: dict[str, DenseJacobian] | None = None) -> JacobianBatch:
    return JacobianBatch(layers or {}, 2, slice(start, stop), 5, torch.float64, torch.device("cpu"))


def test_only_the_slice_that_starts_at_zero_is_the_first() -> None:
    assert [batch(0, 3).first_slice, batch(3, 5).first_slice, batch(0, 5).first_slice] == [True, False, True]


def test_layers_lie_side_by_side_in_the_order_asked_for() -> None:
    a, b = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 1, dtype=torch.float64)
    both = batch(0, 3, {"b": DenseJacobian(b), "a": DenseJacobian(a)})
    assert both.to_dense({"a": 4, "b": 1}).equal(torch.cat((a, b), 2))


def test_a_layer_that_was_not_called_is_zero() -> None:
    a = torch.randn(2, 2, 4, dtype=torch.float64)
    dense = batch(3, 5, {"a": DenseJacobian(a)}).to_dense({"uncalled": 3, "a": 4})
    assert dense.shape == (2, 2, 7)
    assert not dense[:, :, :3].any()
    assert dense[:, :, 3:].equal(a) and dense.dtype == torch.float64


def test_a_batch_in_which_nothing_was_called_is_zero() -> None:
    dense = batch(0, 5).to_dense({"uncalled": 3})
    assert dense.equal(torch.zeros(5, 2, 3, dtype=torch.float64))
