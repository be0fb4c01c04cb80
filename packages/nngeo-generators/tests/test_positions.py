"""Positions that examples share a layer over: a linear layer over a sequence is a convolution with kernel size one."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from nngeo_core.testing import relative_error
from nngeo_generators import HooksGenerator

Build = Callable[..., nn.Module]
Hooks = Callable[..., HooksGenerator]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("positions", [1, 5], ids=lambda T: f"T={T}")
def test_kronecker_factors_follow_the_same_convention(bias: bool, positions: int, build: Build, hooks: Hooks) -> None:
    """Positions are not examples: A sums over them, G averages, for both."""
    linear = build(lambda s, x: s.a(x).tanh().mean(1), a=nn.Linear(3, 2, bias))
    conv = build(lambda s, x: s.a(x.transpose(1, 2)).tanh().mean(2), a=nn.Conv1d(3, 2, 1, bias=bias))
    conv.a.load_state_dict(
        {name: part.unsqueeze(-1) if part.ndim == 2 else part for name, part in linear.a.state_dict().items()}
    )
    x = torch.randn(4, positions, 3, dtype=torch.float64)
    found, expected = (hooks(model).jacobian(x).layers["a"] for model in (linear, conv))
    assert relative_error(found.to_dense(), expected.to_dense()) < 1e-14
    one, other = found.kronecker_factors(), expected.kronecker_factors()
    assert relative_error(one.inputs, other.inputs) < 1e-14
    assert relative_error(one.outputs, other.outputs) < 1e-14
