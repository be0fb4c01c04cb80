"""All structures of Jacobians under the shipped contract, and against their definitions written as loops."""

from collections.abc import Callable, Mapping

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
from nngeo_core.jacobians.sum import SumJacobian, add
from nngeo_core.testing import JacobianContract
from nngeo_core.testing.jacobian_contract import Pair, agree

Build = Callable[[torch.dtype], Pair]
DENSE = DenseJacobian(torch.ones(1, 1, 2))


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def kronecker(
    layout: KroneckerLayout,
    c: int,
    n: int,
    s: int,
    seed: int = 0,
    lazy: bool = False,
    dtype: torch.dtype = torch.float64,
) -> KroneckerJacobian:
    a = numbers(n, s, layout.groups, layout.inputs, seed=seed, dtype=dtype)
    g = numbers(c, n, s, layout.groups, layout.outputs, seed=seed + 1, dtype=dtype)
    return KroneckerJacobian((lambda: a) if lazy else a, g, layout)


def kronecker_pair(layout: KroneckerLayout, c: int = 3, n: int = 4, s: int = 2, lazy: bool = False) -> Build:
    """The other one has other numbers of directions, examples and positions."""

    def build(dtype: torch.dtype) -> Pair:
        other = kronecker(layout, 2, 3, 5, seed=7, dtype=dtype)
        return kronecker(layout, c, n, s, lazy=lazy, dtype=dtype), other

    return build


def index(
    *looked_up: list[int], c: int = 3, width: int = 2, rows: int = 5, seed: int = 0
) -> Callable[..., IndexJacobian]:
    places = torch.tensor(looked_up, dtype=torch.long)

    def build(dtype: torch.dtype = torch.float64) -> IndexJacobian:
        return IndexJacobian(places, numbers(c, *places.shape, width, seed=seed, dtype=dtype), rows)

    return build


def pair(first: Callable[..., LayerJacobian], second: Callable[..., LayerJacobian]) -> Build:
    return lambda dtype: (first(dtype), second(dtype))


class TestKroneckerJacobian(JacobianContract):
    def cases(self) -> Mapping[str, Build]:
        plain, bias = KroneckerLayout(1, 3, 4, False), KroneckerLayout(1, 3, 4, True)
        return {
            "one-position": kronecker_pair(bias, s=1),
            "one-position-no-bias": kronecker_pair(plain, s=1),
            "positions": kronecker_pair(bias, s=6),
            "positions-no-bias": kronecker_pair(plain, s=6),
            "no-positions": kronecker_pair(bias, s=0),
            "one-direction": kronecker_pair(bias, c=1, s=1),
            "one-example": kronecker_pair(bias, n=1, s=3),
            "no-examples": kronecker_pair(bias, n=0),
            "one-of-each": kronecker_pair(KroneckerLayout(1, 1, 1, True), c=1, n=1, s=1),
            "more-positions-than-weights": kronecker_pair(bias, s=40),
            "computed-when-needed": kronecker_pair(bias, lazy=True),
            "groups": kronecker_pair(KroneckerLayout(2, 3, 4, True), s=3),
            "groups-one-position": kronecker_pair(KroneckerLayout(2, 3, 4, True), s=1),
            "depthwise": kronecker_pair(KroneckerLayout(6, 1, 4, True), s=3),
            "in-by-out": kronecker_pair(KroneckerLayout(1, 3, 4, True, leading_inputs=4), s=3),
            "in-by-out-one-position": kronecker_pair(KroneckerLayout(1, 3, 4, True, leading_inputs=4), s=1),
            "transposed-convolution": kronecker_pair(KroneckerLayout(2, 3, 6, True, leading_inputs=2), s=3),
            "transposed-convolution-no-bias": kronecker_pair(KroneckerLayout(2, 3, 6, False, leading_inputs=3), s=1),
            "bias-only": kronecker_pair(KroneckerLayout(1, 3, 0, True), s=3),
            "bias-only-one-position": kronecker_pair(KroneckerLayout(1, 3, 0, True), s=1),
            "bias-only-groups": kronecker_pair(KroneckerLayout(2, 3, 0, True), s=3),
        }


class TestIndexJacobian(JacobianContract):
    def cases(self) -> Mapping[str, Build]:
        other = index([4, 1, 1], [0, 0, -1], c=2, seed=5)
        return {
            "distinct": pair(index([0, 3], [4, 1]), other),
            "repeated-in-one-example": pair(index([2, 2, 0], [1, 1, 1]), other),
            "repeated-across-examples": pair(index([2, 1], [2, 1], [2, 2]), other),
            "without-derivative": pair(index([-1, 3, 3], [-1, -1, -1]), other),
            "one-row": pair(index([0, 0], [0, 0], rows=1), index([0], rows=1, seed=3)),
            "no-positions": pair(index([], []), other),
            "one-of-each": pair(index([3], c=1, width=1), index([3], c=1, width=1, seed=4)),
            "same-sizes": pair(index([2, 2], [0, -1]), index([1, 2], [2, 2], seed=4)),
        }


class TestScaleShiftJacobian(JacobianContract):
    def cases(self) -> Mapping[str, Build]:
        def of(s: int, has_bias: bool, c: int = 3) -> Build:
            def build(dtype: torch.dtype) -> Pair:
                def one(n: int, s: int, seed: int) -> ScaleShiftJacobian:
                    g = numbers(c, n, s, 4, seed=seed, dtype=dtype)
                    return ScaleShiftJacobian(numbers(n, s, 4, seed=seed + 1, dtype=dtype), g, has_bias)

                return one(5, s, 0), one(5, s + 1, 9)

            return build

        return {
            "one-position": of(1, True),
            "positions": of(3, True),
            "no-shift": of(3, False),
            "no-positions": of(0, True),
            "one-direction": of(1, True, c=1),
        }


class TestDenseJacobian(JacobianContract):
    def cases(self) -> Mapping[str, Build]:
        def of(c: int, n: int, d: int) -> Build:
            return lambda dtype: (
                DenseJacobian(numbers(c, n, d, dtype=dtype)),
                DenseJacobian(numbers(3, 4, d, seed=1, dtype=dtype)),
            )

        return {"several": of(3, 4, 5), "one-of-each": of(1, 1, 1)}


class TestSumJacobian(JacobianContract):
    """An embedding tied to the output head: look-ups, and products with the same table stored rows x width."""

    def cases(self) -> Mapping[str, Build]:
        head = KroneckerLayout(1, 5, 2, False)
        transposed = KroneckerLayout(1, 2, 5, False, leading_inputs=5)

        def tied(layout: KroneckerLayout) -> Build:
            def one(dtype: torch.dtype, seed: int) -> LayerJacobian:
                looked_up = index([2, 2, 0], [1, -1, 4], seed=seed)(dtype)
                return add(looked_up, kronecker(layout, 3, 2, 4, seed=seed + 3, dtype=dtype))

            return lambda dtype: (one(dtype, 0), one(dtype, 10))

        def three(dtype: torch.dtype) -> Pair:
            dense = DenseJacobian(numbers(3, 2, 10, seed=8, dtype=dtype))
            first = tied(head)(dtype)[0]
            return add(first, dense), add(dense, first)

        return {"out-by-in": tied(head), "in-by-out": tied(transposed), "three-parts": three}


def kronecker_by_definition(jacobian: KroneckerJacobian) -> Tensor:
    """Place by place: weight (q, A1, G, A2), then bias (q, G)."""
    layout, (c, n, d) = jacobian.layout, jacobian.shape
    rest = layout.inputs // layout.leading_inputs
    dense = torch.zeros(c, n, d, dtype=torch.float64)
    for q in range(layout.groups):
        for out in range(layout.outputs):
            g = jacobian.g[:, :, :, q, out]
            for i in range(layout.inputs):
                place = ((q * layout.leading_inputs + i // rest) * layout.outputs + out) * rest + i % rest
                dense[:, :, place] = (g * jacobian.a[:, :, q, i]).sum(2)
            if layout.has_bias:
                dense[:, :, layout.weight_numel + q * layout.outputs + out] = g.sum(2)
    return dense


@pytest.mark.parametrize("leading_inputs", [1, 2, 6])
@pytest.mark.parametrize("has_bias", [True, False])
def test_kronecker_to_dense_is_its_definition(leading_inputs: int, has_bias: bool) -> None:
    jacobian = kronecker(KroneckerLayout(2, 3, 6, has_bias, leading_inputs), c=2, n=3, s=4)
    agree(jacobian.to_dense(), kronecker_by_definition(jacobian), "to_dense")


def test_index_to_dense_is_its_definition() -> None:
    jacobian = index([2, 2, -1], [0, 4, 2])()
    dense = torch.zeros(3, 2, 5, 2, dtype=torch.float64)
    for n in range(2):
        for s in range(3):
            if jacobian.index[n, s] >= 0:
                dense[:, n, jacobian.index[n, s]] += jacobian.g[:, n, s]
    agree(jacobian.to_dense(), dense.flatten(2), "to_dense")


def test_an_index_jacobian_is_a_kronecker_jacobian_with_one_hot_inputs() -> None:
    jacobian = index([2, 2, 0], [0, 4, 2])()
    one_hot = torch.nn.functional.one_hot(jacobian.index, 5).double().unsqueeze(2)
    same = KroneckerJacobian(one_hot, jacobian.g.unsqueeze(3), KroneckerLayout(1, 2, 5, False, leading_inputs=5))
    agree(jacobian.to_dense(), same.to_dense(), "to_dense")
    mine, expected = jacobian.kronecker_factors(), same.kronecker_factors()
    agree(torch.diag_embed(mine.inputs), expected.inputs, "input factor")
    agree(mine.outputs, expected.outputs, "output factor")
    assert mine.layout == expected.layout


def test_positions_without_derivative_are_not_counted_as_inputs() -> None:
    assert index([-1, 3, 3], [-1, -1, 0])().kronecker_factors().inputs.tolist() == [[1, 0, 0, 2, 0]]


def test_scale_shift_to_dense_is_its_definition() -> None:
    x_hat, g = numbers(2, 3, 4), numbers(5, 2, 3, 4, seed=1)
    expected = torch.zeros(5, 2, 8, dtype=torch.float64)
    for s in range(3):
        expected += torch.cat((g[:, :, s] * x_hat[:, s], g[:, :, s]), 2)
    agree(ScaleShiftJacobian(x_hat, g, True).to_dense(), expected, "to_dense")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("s", [0, 1, 4, 30])
@pytest.mark.parametrize("inputs", [0, 3])
@pytest.mark.parametrize("has_bias", [True, False])
def test_kronecker_factors_are_their_formula(groups: int, s: int, inputs: int, has_bias: bool) -> None:
    """A = sum_{n,s} (a, 1)(a, 1)^T; G = sum_{c,n} (1/s) sum_s g g^T."""
    jacobian = kronecker(KroneckerLayout(groups, 2, inputs, has_bias), c=3, n=4, s=s)
    a = torch.cat((jacobian.a, jacobian.a.new_ones(4, s, groups, int(has_bias))), 3)
    factors = jacobian.kronecker_factors()
    for q in range(groups):
        rows = a[:, :, q].reshape(4 * s, a.shape[3])
        columns = jacobian.g[:, :, :, q].reshape(-1, 2)
        agree(factors.inputs[q], rows.T @ rows, "input factor")
        agree(factors.outputs[q], columns.T @ columns / max(1, s), "output factor")


def test_kronecker_factors_of_inputs_that_are_not_contiguous() -> None:
    layout, g = KroneckerLayout(1, 2, 3, True), numbers(2, 4, 5, 1, 2)
    a = numbers(1, 3, 4, 5, seed=3).permute(2, 3, 0, 1)
    factors = KroneckerJacobian(a, g, layout).kronecker_factors()
    expected = KroneckerJacobian(a.contiguous(), g, layout).kronecker_factors()
    agree(factors.inputs, expected.inputs, "input factor")


def test_with_one_example_and_position_the_factors_are_the_second_moment() -> None:
    jacobian = kronecker(KroneckerLayout(1, 2, 3, False), c=4, n=1, s=1)
    factors = jacobian.kronecker_factors()
    agree(torch.kron(factors.outputs[0], factors.inputs[0]), jacobian.second_moment(), "G (x) A")


def test_inputs_are_computed_once_and_only_when_needed() -> None:
    calls = []

    def inputs() -> Tensor:
        calls.append(1)
        return numbers(4, 2, 1, 3)

    jacobian = KroneckerJacobian(inputs, numbers(2, 4, 2, 1, 5), KroneckerLayout(1, 5, 3, True))
    assert (jacobian.shape, calls) == ((2, 4, 20), [])
    jacobian.kronecker_factors(inputs=False)
    assert calls == []
    jacobian.to_dense(), jacobian.jvp(numbers(20)), jacobian.sum_of_squares()
    assert calls == [1]


def test_uses_of_one_structure_join_and_others_become_parts() -> None:
    plain, with_bias = KroneckerLayout(1, 5, 2, False), KroneckerLayout(1, 5, 1, True)
    two = add(kronecker(plain, 3, 2, 4), kronecker(plain, 3, 2, 1, seed=4))
    assert isinstance(two, KroneckerJacobian) and two.positions == 5
    parts = add(kronecker(plain, 3, 2, 4), kronecker(with_bias, 3, 2, 4))
    assert isinstance(parts, SumJacobian) and len(parts.parts) == 2
    joined = add(parts, kronecker(with_bias, 3, 2, 1, seed=4))
    assert isinstance(joined, SumJacobian) and len(joined.parts) == 2
    looked_up = add(index([0], [1])(), index([2], [-1], seed=1)())
    assert isinstance(looked_up, IndexJacobian) and looked_up.index.tolist() == [[0, 2], [1, -1]]


def test_look_ups_in_tables_of_different_size_do_not_join() -> None:
    assert index([0], rows=5)().joined(index([0], rows=4)()) is None


@pytest.mark.parametrize(
    ("jacobian", "call", "message"),
    [
        (DENSE, "bias_cross", "DenseJacobian does not say which bias goes with which weight"),
        (
            DENSE,
            "kronecker_factors",
            "DenseJacobian is not a sum of Kronecker products, so it has no Kronecker factors",
        ),
        (kronecker(KroneckerLayout(1, 2, 2, False), 1, 1, 1), "bias_cross", "KroneckerJacobian does not say which"),
        (ScaleShiftJacobian(numbers(1, 1, 2), numbers(1, 1, 1, 2), False), "bias_cross", "ScaleShiftJacobian does not"),
        (index([0])(), "bias_cross", "use the diagonal or the dense representation for this layer"),
        (SumJacobian((DENSE,)), "kronecker_factors", "SumJacobian is not a sum of Kronecker products"),
    ],
)
def test_what_a_structure_lacks_is_refused_by_name(jacobian: LayerJacobian, call: str, message: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=message):
        getattr(jacobian, call)()


def test_rotation_of_a_sum_is_refused() -> None:
    with pytest.raises(UnsupportedOperationError, match="cannot be turned into a Kronecker basis"):
        SumJacobian((DENSE,)).rotate(numbers(1, 1, 1), numbers(1, 2, 2))


def test_the_contract_finds_a_wrong_contraction() -> None:
    class Wrong(DenseJacobian):
        def sum_of_squares(self) -> Tensor:
            return self.tensor.sum((0, 1)).square()

    tensor = numbers(2, 3, 4)
    with pytest.raises(AssertionError, match=r"sum_of_squares: relative error .*, expected at most 1e-10"):
        JacobianContract().test_contraction(lambda _: (Wrong(tensor), Wrong(tensor)), torch.float64, "squares")


def test_the_contract_finds_a_changed_jacobian() -> None:
    class Spoiled(DenseJacobian):
        def squared_norm(self) -> Tensor:
            return self.tensor.square_().sum()

    jacobian = Spoiled(numbers(2, 3, 4))
    with pytest.raises(AssertionError, match="to_dense after squares: relative error"):
        JacobianContract().test_contraction(lambda _: (jacobian, jacobian), torch.float64, "squares")


def test_a_contract_without_cases_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"JacobianContract has no cases: override cases\(\)"):
        JacobianContract().cases()
