"""kernel_evolution: one kernel for each checkpoint, and a model that is as before."""

from typing import Any

import pytest
import torch

from nngeo_core import GramMatrix
from nngeo_core.testing import relative_error
from nngeo_ntk import effective_rank, kernel_alignment, kernel_evolution, target_alignment

from .helpers import problem


def states(model: torch.nn.Module) -> list[dict[str, Any]]:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return [before, {name: 2 * tensor for name, tensor in before.items()}]


def test_each_snapshot_is_of_its_checkpoint() -> None:
    p = problem()
    model, checkpoints = p.case.model, states(p.case.model)
    found = kernel_evolution(model, checkpoints, iter(p.train.split(3)), p.targets)
    for snapshot, state in zip(found, checkpoints, strict=True):
        model.load_state_dict(state)
        kernel = GramMatrix(model, p.train)
        assert relative_error(snapshot.kernel.get_dense_tensor(), kernel.get_dense_tensor()) <= 1e-10
        assert relative_error(snapshot.values, kernel.eigendecomposition().values) <= 1e-10
        assert relative_error(snapshot.effective_rank, effective_rank(kernel)) <= 1e-10
        assert snapshot.target_alignment is not None
        assert relative_error(snapshot.target_alignment, target_alignment(kernel, p.targets)) <= 1e-10
        assert relative_error(snapshot.first_alignment, kernel_alignment(kernel, found[0].kernel)) <= 1e-10
    assert 0.1 < found[1].first_alignment < 0.999


def test_the_model_is_as_before_also_after_an_error() -> None:
    p = problem()
    before = states(p.case.model)[0]
    kernel_evolution(p.case.model, states(p.case.model)[1:], p.train, representation="trace")
    with pytest.raises(RuntimeError, match="Missing key"):
        kernel_evolution(p.case.model, [*states(p.case.model)[1:], {}], p.train)
    assert all(torch.equal(tensor, before[name]) for name, tensor in p.case.model.state_dict().items())


def test_no_checkpoints_are_refused() -> None:
    p = problem()
    with pytest.raises(ValueError, match="no checkpoints"):
        kernel_evolution(p.case.model, [], p.train)
