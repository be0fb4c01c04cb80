"""The rule of layer normalisation."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nngeo_core import Call, ScaleShiftJacobian, UnsupportedLayerError
from nngeo_core.testing import RuleCase, RuleContract
from nngeo_core.testing.jacobian_contract import agree
from nngeo_core.testing.oracles import fisher, relative_error
from nngeo_generators.rules.layer_norm import LayerNormRule

Change = Callable[[Tensor], Tensor]


def layer_norm(*shape: int, axes: int = 1, change: Change = torch.clone, **options: Any) -> Callable[[], RuleCase]:
    def build() -> RuleCase:
        x = change(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
        return RuleCase(nn.LayerNorm(x.shape[-axes:], **options).double(), x)

    return build


class TestLayerNormRule(RuleContract):
    rule = LayerNormRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        return {
            "vectors": layer_norm(4, 3),
            "vectors-no-bias": layer_norm(4, 3, bias=False),
            "sequence": layer_norm(4, 5, 3, eps=0.1),
            "sequence-no-bias": layer_norm(4, 5, 3, bias=False),
            "as-many-positions-as-examples": layer_norm(3, 3, 3),
            "several-axes-of-positions": layer_norm(2, 2, 3, 4),
            "several-axes-of-channels": layer_norm(3, 4, 2, 3, axes=2),
            "all-axes-are-channels": layer_norm(3, 4, 2, axes=2),
            "transposed": layer_norm(5, 3, 4, change=lambda x: x.transpose(0, 1)),
            "expanded": layer_norm(1, 4, 3, change=lambda x: x.expand(5, -1, -1)),
        }


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 3), max_size=2), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.booleans())
def test_any_geometry_equals_autograd(positions: list[int], channels: list[int], bias: bool) -> None:
    channels = [*channels, 2]  # one channel alone is its own mean: both derivatives are rounding
    case = layer_norm(3, *positions, *channels, axes=len(channels), bias=bias)()
    names = tuple(name for name, _ in case.module.named_parameters())
    shape = (2, 3, *positions, *channels)
    g = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    agree(LayerNormRule().jacobian(case.module, case.call, g, names).to_dense(), case.autograd(g, names), "to_dense")


def test_leading_axes_are_positions() -> None:
    case, g = layer_norm(3, 4, 2, 3, axes=2)(), torch.randn(5, 3, 4, 2, 3, dtype=torch.float64)
    found = LayerNormRule().jacobian(case.module, case.call, g, ("weight", "bias"))
    assert isinstance(found, ScaleShiftJacobian)
    assert (found.x_hat.shape, found.g.shape) == ((3, 4, 6), (5, 3, 4, 6))


@pytest.mark.parametrize(("shape", "axes"), [((3,), "1 more axis"), ((2, 3), "2 more axes")])
def test_one_example_is_refused(shape: tuple[int, ...], axes: str) -> None:
    call, g = Call((torch.ones(shape),), {}, "norm"), torch.ones(1, *shape)
    with pytest.raises(UnsupportedLayerError, match=f"'norm' was called on one example .* at least {axes}$"):
        LayerNormRule().jacobian(nn.LayerNorm(shape), call, g, ("weight", "bias"))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_fisher_of_a_small_model(dense_fisher: Callable[..., Tensor], bias: bool) -> None:
    norms = nn.LayerNorm(4, bias=bias), nn.LayerNorm((2, 4), bias=bias)
    model = nn.Sequential(nn.Linear(3, 4), norms[0], nn.Tanh(), norms[1], nn.Flatten(), nn.Linear(8, 3)).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = fisher(model, x, [name for name, _ in model.named_parameters()], "classif_logits")
    assert relative_error(dense_fisher(model, x, "classif_logits"), expected) <= 1e-10
