"""The rule of linear layers."""

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nngeo_core import Call, KroneckerJacobian, UnsupportedLayerError
from nngeo_core.testing import RuleCase, RuleContract
from nngeo_core.testing.jacobian_contract import CONTRACTIONS, agree
from nngeo_generators.rules.linear import LinearRule


def linear(*shape: int, bias: bool = True, change: Callable[[Tensor], Tensor] = torch.clone) -> Callable[[], RuleCase]:
    def build() -> RuleCase:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return RuleCase(nn.Linear(3, 4, bias).double(), change(torch.randn(*shape, 3, dtype=torch.float64)))

    return build


class TestLinearRule(RuleContract):
    rule = LinearRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        return {
            "vectors": linear(5),
            "vectors-no-bias": linear(5, bias=False),
            "sequence": linear(5, 4),
            "sequence-no-bias": linear(5, 4, bias=False),
            "one-position": linear(5, 1),
            "as-many-positions-as-examples": linear(5, 5),
            "film": linear(2, 2, 3, 2),
            "expanded": linear(1, 4, change=lambda x: x.expand(5, -1, -1)),
            "transposed": linear(4, 5, change=lambda x: x.transpose(0, 1)),
            "strided": linear(10, 4, change=lambda x: x[::2]),
        }


@st.composite
def geometries(draw: st.DrawFn) -> tuple[RuleCase, tuple[str, ...]]:
    """A linear layer, inputs with any number of axes of positions in any memory layout, and the parameters asked for."""
    shape = [draw(st.integers(1, 3)), *draw(st.lists(st.integers(1, 3), max_size=3)), draw(st.integers(1, 4))]
    choices = [("weight", "bias"), ("weight",), ("bias",)] if draw(st.booleans()) else [("weight",)]
    names = draw(st.sampled_from(choices))
    module = nn.Linear(shape[-1], draw(st.integers(1, 4)), len(choices) > 1, dtype=torch.float64)
    order = draw(st.permutations(range(len(shape))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    stored = torch.randn([shape[axis] for axis in order], dtype=torch.float64, generator=generator)
    return RuleCase(module, stored.permute(*(order.index(axis) for axis in range(len(shape))))), names


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(geometries(), st.integers(1, 3))
def test_any_geometry_equals_autograd(drawn: tuple[RuleCase, tuple[str, ...]], directions: int) -> None:
    case, names = drawn
    shape = (directions, *case.module(*case.call.arguments).shape)
    gradients = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = LinearRule().jacobian(case.module, case.call, gradients, names)
    agree(found.to_dense(), case.autograd(gradients, names), "to_dense")
    for check in CONTRACTIONS.values():
        check(found, found)


@pytest.mark.parametrize("positions", [(), (4,), (2, 3)], ids=str)
def test_linear_layers_have_one_group_and_a_position_for_each_inner_index(positions: tuple[int, ...]) -> None:
    module, x = nn.Linear(3, 2), torch.randn(5, *positions, 3)
    found = LinearRule().jacobian(module, Call((x,), {}, "fc"), torch.randn(7, 5, *positions, 2), ("weight", "bias"))
    assert isinstance(found, KroneckerJacobian)
    s = torch.Size(positions).numel()
    assert (found.a.shape, found.g.shape) == ((5, s, 1, 3), (7, 5, s, 1, 2))


def test_the_input_is_not_copied() -> None:
    x = torch.randn(5, 4, 3)
    found = LinearRule().jacobian(nn.Linear(3, 2), Call((x,), {}, "fc"), torch.randn(7, 5, 4, 2), ("weight",))
    assert isinstance(found, KroneckerJacobian) and found.a.data_ptr() == x.data_ptr()


def test_the_input_may_be_given_by_keyword() -> None:
    x, g = torch.randn(5, 3), torch.randn(1, 5, 2)
    found = LinearRule().jacobian(nn.Linear(3, 2), Call((), {"input": x}, "fc"), g, ("weight", "bias"))
    expected = torch.cat((torch.einsum("cng,na->cnga", g, x).flatten(2), g), 2)
    assert torch.allclose(found.to_dense(), expected)


def test_one_vector_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError) as error:
        LinearRule().jacobian(nn.Linear(3, 2), Call((torch.ones(3),), {}, "fc"), torch.ones(1, 2), ("weight",))
    assert str(error.value) == "'fc' was called on one input of shape (3,); expected (n, *, in_features)"


def test_a_call_without_a_tensor_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="'fc' was called without a tensor as its 'input'"):
        LinearRule().jacobian(nn.Linear(3, 2), Call((), {}, "fc"), torch.ones(1, 1, 2), ("weight",))
