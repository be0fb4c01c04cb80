"""Jacobians that travel are the same when they arrive."""

import json

import pytest
import torch

from nngeo_core import (
    DenseJacobian,
    IndexJacobian,
    JacobianBatch,
    KroneckerJacobian,
    KroneckerLayout,
    LayerJacobian,
    ScaleShiftJacobian,
    SumJacobian,
)
from nngeo_core.jacobians.transport import described, restored

C, N, S = 2, 3, 4


def kronecker(mask: bool) -> LayerJacobian:
    layout = KroneckerLayout(groups=2, outputs=3, inputs=5, has_bias=True)
    kept = torch.rand(N, S) > 0.3 if mask else None
    return KroneckerJacobian(lambda: torch.randn(N, S, 2, 5), torch.randn(C, N, S, 2, 3), layout, kept)


class Other(DenseJacobian):
    """A structure that is not built in."""


JACOBIANS = {
    "kronecker": lambda: kronecker(mask=False),
    "masked": lambda: kronecker(mask=True),
    "index": lambda: IndexJacobian(torch.randint(7, (N, S)), torch.randn(C, N, S, 2), 7, torch.rand(N, S) > 0.3),
    "scale_shift": lambda: ScaleShiftJacobian(torch.randn(N, S, 3), torch.randn(C, N, S, 3), has_bias=True),
    "dense": lambda: DenseJacobian(torch.randn(C, N, 6)),
    "other": lambda: Other(torch.randn(C, N, 6)),
    "sum": lambda: SumJacobian((kronecker(mask=False), DenseJacobian(torch.randn(C, N, 36)))),
}


@pytest.mark.parametrize("kind", JACOBIANS)
def test_a_jacobian_is_the_same_when_it_arrives(kind: str) -> None:
    torch.manual_seed(0)
    sent = JACOBIANS[kind]()
    batch = JacobianBatch({"a": sent, "b": sent}, N, slice(2, 4), 5, torch.float64, torch.device("cpu"), -1)
    description, tensors = described(batch)
    found = restored(json.loads(json.dumps(description)), tensors, batch.device)
    for name in ("n_examples", "directions", "total_directions", "dtype", "device", "sign"):
        assert getattr(found, name) == getattr(batch, name)
    for jacobian in found.layers.values():
        assert type(jacobian) is (DenseJacobian if kind == "other" else type(sent))
        assert torch.equal(jacobian.to_dense(), sent.to_dense())
    if kind == "masked":
        arrived = found.layers["a"].kronecker_factors()
        assert torch.equal(arrived.inputs, sent.kronecker_factors().inputs)
