"""The suite that every LayerJacobian passes: each contraction equals the one from the dense tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.jacobians.layout import KroneckerFactors, KroneckerLayout
from nngeo_core.jacobians.sum import add
from nngeo_core.testing.oracles import relative_error

if TYPE_CHECKING:
    import pytest

__all__ = ["CONTRACTIONS", "JacobianContract", "Pair", "TOLERANCES", "agree"]

Pair: TypeAlias = tuple[LayerJacobian, LayerJacobian]
"""A Jacobian (c, n, d), and another (c', n', d) of the same layer."""

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest relative error in each dtype."""


class JacobianContract:
    """What is asked of a LayerJacobian: subclass it in a test file, name the cases, and pytest does the rest.

    Every contraction is compared with that of `to_dense()`, relative to its norm, in float64 to 1e-10, in float32 to
    1e-4. What a structure does not define (`bias_cross`, `kronecker_factors`, `rotate`) must raise
    `UnsupportedOperationError`. The values of Kronecker factors, which the dense tensor does not determine, are the
    subclass's to test; here they are symmetric, positive, of the layout's shape, and separable into passes.

    Example:
        >>> class TestOuterJacobian(JacobianContract):
        ...     def cases(self):
        ...         def two_examples(dtype):
        ...             tensor = torch.arange(12, dtype=dtype).view(2, 2, 3)
        ...             return DenseJacobian(tensor), DenseJacobian(tensor + 1)
        ...
        ...         return {"two-examples": two_examples}
        >>> suite = TestOuterJacobian()
        >>> for contraction in CONTRACTIONS:
        ...     suite.test_contraction(suite.cases()["two-examples"], torch.float64, contraction)
    """

    def cases(self) -> Mapping[str, Callable[[torch.dtype], Pair]]:
        """Functions that build a pair in a dtype, by the name of the case; equal (c, n) lets the two be added."""
        raise NotImplementedError(f"{type(self).__name__} has no cases: override cases()")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each case, dtype and contraction."""
        if "build" in metafunc.fixturenames:
            cases = self.cases()
            metafunc.parametrize("contraction", CONTRACTIONS)
            metafunc.parametrize("dtype", TOLERANCES, ids=str)
            metafunc.parametrize("build", cases.values(), ids=cases.keys())

    def test_contraction(self, build: Callable[[torch.dtype], Pair], dtype: torch.dtype, contraction: str) -> None:
        """The contraction equals the dense one, and leaves the Jacobian as it was."""
        jacobian, other = build(dtype)
        before = jacobian.to_dense().clone()
        CONTRACTIONS[contraction](jacobian, other)
        agree(jacobian.to_dense(), before, f"to_dense after {contraction}")


def agree(actual: Tensor, expected: Tensor, what: str, terms: Tensor | None = None) -> None:
    """Compare with a reference: dtype of the result, shape, and values to the tolerance of that dtype.

    Args:
        actual: The result.
        expected: The reference, in any dtype.
        what: The name of the result, for the message.
        terms: What the error is relative to where sums may cancel: those of the terms' absolute values; None takes
            `expected`.

    Raises:
        AssertionError: They differ.
    """
    assert actual.shape == expected.shape, f"{what} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    error, tolerance = relative_error(actual, expected), TOLERANCES[actual.dtype]
    if terms is not None and terms.any():
        error *= float(expected.norm() / terms.norm())
    assert error <= tolerance, f"{what}: relative error {error:.1e}, expected at most {tolerance:.0e}"


def _dense(jacobian: LayerJacobian) -> Tensor:
    return jacobian.to_dense().double()


def _draw(jacobian: LayerJacobian, *shape: int) -> Tensor:
    numbers = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return numbers.to(jacobian.device, jacobian.dtype)


def _check_description(jacobian: LayerJacobian, other: LayerJacobian) -> None:
    dense = jacobian.to_dense()
    described = (jacobian.shape, jacobian.dtype, jacobian.device)
    found = (tuple(dense.shape), dense.dtype, dense.device)
    assert described == found, f"the Jacobian says {described}, its dense tensor is {found}"
    assert jacobian.nbytes >= 0, f"nbytes is {jacobian.nbytes}"
    assert jacobian.shape[2] == other.shape[2], "the two Jacobians of a case must be of one layer"


def _check_of_examples(jacobian: LayerJacobian, other: LayerJacobian) -> None:
    n = jacobian.shape[1]
    for some in (slice(0, n), slice(0, n, 2), slice(n - 1, n)):
        agree(jacobian.dense_rows(some), _dense(jacobian)[:, some], f"dense_rows({some})")
        part = jacobian.of_examples(some)
        if part is not None:
            agree(part.to_dense(), _dense(jacobian)[:, some], f"of_examples({some})")
    chosen = torch.tensor([n - 1, 0] if n else [], dtype=torch.int64, device=jacobian.device)
    part = jacobian.of_examples(chosen)
    if part is not None and n:
        agree(part.to_dense(), _dense(jacobian)[:, chosen], f"of_examples({chosen})")


def _check_jvp(jacobian: LayerJacobian, other: LayerJacobian) -> None:
    v = _draw(jacobian, jacobian.shape[2])
    dense = _dense(jacobian)
    agree(jacobian.jvp(v), dense @ v.double(), "jvp", terms=dense.abs() @ v.double().abs())


def _check_vjp(jacobian: LayerJacobian, other: LayerJacobian) -> None:
    u = _draw(jacobian, *jacobian.shape[:2])
    expected = torch.einsum("cn,cnd->d", u.double(), _dense(jacobian))
    agree(jacobian.vjp(u), expected, "vjp")
    weights = jacobian.pairs.weight_numel if jacobian.pairs else 0
    gradient = _draw(jacobian, jacobian.shape[2])
    parts = [part for part in gradient.tensor_split([weights]) if len(part)] or [gradient]
    agree(torch.cat(jacobian.residual(parts, u)), gradient.double() - expected, "residual")


def _check_squares(jacobian: LayerJacobian, other: LayerJacobian) -> None:
    squares = _dense(jacobian).square()
    agree(jacobian.sum_of_squares(), squares.sum((0, 1)), "sum_of_squares")
    total = _draw(jacobian, jacobian.shape[2])
    expected = total.double() + squares.sum((0, 1))
    jacobian.add_squares_to(total)
    agree(total, expected, "add_squares_to")
    agree(jacobian.squared_norm(), squares.sum(), "squared_norm")


def _check_second_moment(jacobian: LayerJacobian, other: LayerJacobian) -> None:
    rows = _dense(jacobian).flatten(0, 1)
    agree(jacobian.second_moment(), rows.T @ rows, "second_moment")


def _check_gram(jacobian: LayerJacobian, other: LayerJacobian) -> None:
    dense = DenseJacobian(other.to_dense())
    pairs = {
        "with itself": (jacobian, jacobian),
        "with another": (jacobian, other),
        "with a dense one": (jacobian, dense),
        "of a dense one with it": (dense, jacobian),
        "of another with it": (other, jacobian),
    }
    for name, (first, second) in pairs.items():
        expected = torch.einsum("cnd,kmd->cnkm", _dense(first), _dense(second))
        agree(first.gram(second), expected, f"gram {name}")


def _check_addition(jacobian: LayerJacobian, other: LayerJacobian) -> None:
    others = [jacobian, DenseJacobian(jacobian.to_dense()), *([other] if other.shape == jacobian.shape else [])]
    for second in others:
        expected = _dense(jacobian) + _dense(second)
        for both in (add(jacobian, second), add(second, jacobian)):
            agree(both.to_dense(), expected, f"add with {type(second).__name__}")
            _check_squares(both, both)
        thrice = add(jacobian, add(second, jacobian))
        agree(thrice.to_dense(), expected + _dense(jacobian), f"add with {type(second).__name__}, then again")
        _check_gram(thrice, second)


def _check_bias_cross(jacobian: LayerJacobian, other: LayerJacobian) -> None:
    try:
        cross = jacobian.bias_cross()
    except UnsupportedOperationError:
        return
    d, rows = jacobian.shape[2], _dense(jacobian).flatten(0, 1)
    bias = _bias_of_each_weight(jacobian, d, len(cross)).to(jacobian.device)
    agree(cross, (rows[:, : len(cross)] * rows[:, bias]).sum(0), "bias_cross")


def _bias_of_each_weight(jacobian: LayerJacobian, d: int, weights: int) -> Tensor:
    """Places of the biases, shape (d_weight,): by the Kronecker layout, else weight k has bias k."""
    factors = _factors(jacobian)
    if factors is None:
        assert d == 2 * weights, f"bias_cross has {weights} entries for {d} parameters, and no layout to pair them"
        return torch.arange(weights, d)
    matrix = factors.layout.to_matrix(torch.arange(d))
    bias_of = torch.empty(weights, dtype=torch.long)
    bias_of[matrix[..., :-1].flatten()] = matrix[..., -1:].expand_as(matrix[..., :-1]).flatten()
    return bias_of


def _factors(jacobian: LayerJacobian, inputs: bool = True) -> KroneckerFactors | None:
    try:
        return jacobian.kronecker_factors(inputs)
    except UnsupportedOperationError:
        return None


def _check_kronecker_factors(jacobian: LayerJacobian, other: LayerJacobian) -> None:
    first, later = _factors(jacobian), _factors(jacobian, inputs=False)
    if first is None or later is None:
        assert first is later, "kronecker_factors raises with one value of `inputs` only"
        return
    layout = first.layout
    width = layout.inputs + layout.has_bias
    assert layout.numel == jacobian.shape[2], f"the layout has {layout.numel} parameters, the layer {jacobian.shape[2]}"
    assert not later.inputs.any(), "with inputs=False the input factor must be zero"
    agree(later.outputs, first.outputs, "the output factor with inputs=False")
    _check_factor(first.inputs, layout, width, "input factor")
    _check_factor(first.outputs, layout, layout.outputs, "output factor")


def _check_factor(factor: Tensor, layout: KroneckerLayout, width: int, name: str) -> None:
    """Symmetric and positive of the layout's shape, or the diagonal of such a factor."""
    if factor.ndim == 2:
        factor = torch.diag_embed(factor)
    assert factor.shape == (layout.groups, width, width), f"{name} has shape {tuple(factor.shape)}, layout {layout}"
    agree(factor, factor.mT, f"transpose of the {name}")
    smallest, scale = torch.linalg.eigvalsh(factor.double()), factor.abs().amax() if factor.numel() else 0
    assert (smallest >= -TOLERANCES[factor.dtype] * scale).all(), f"{name} has the eigenvalue {smallest.min():.1e}"


def _check_reduced(jacobian: LayerJacobian, other: LayerJacobian) -> None:
    """The same sum of gradients over positions, so the same J where inputs do not differ between them."""
    try:
        reduced = jacobian.reduced()
    except UnsupportedOperationError:
        return
    assert reduced.shape == jacobian.shape, f"reduced has shape {reduced.shape}, J {jacobian.shape}"
    again = reduced.reduced()
    agree(again.to_dense(), _dense(reduced), "reduced twice")
    if jacobian.pairs is not None and getattr(jacobian, "mask", None) is None:
        d = len(jacobian.bias_cross())
        agree(reduced.to_dense()[..., d:], _dense(jacobian)[..., d:], "the biases' part of reduced")


def _check_rotate(jacobian: LayerJacobian, other: LayerJacobian) -> None:
    factors = _factors(jacobian)
    if factors is None:
        return
    layout = factors.layout
    outputs = _draw(jacobian, *factors.outputs.shape)
    matrices = layout.to_matrix(_dense(jacobian))  # c direction, n example, q group, g, h outputs, a, b inputs
    kept = torch.einsum("cnqga,qgh->cnqha", matrices, outputs.double())
    agree(jacobian.rotate(None, outputs).to_dense(), layout.from_matrix(kept), "rotate of the outputs alone")
    if factors.inputs.ndim == 2:
        return
    inputs, outputs = _draw(jacobian, *factors.inputs.shape), _draw(jacobian, *factors.outputs.shape)
    expected = torch.einsum("cnqga,qgh,qab->cnqhb", matrices, outputs.double(), inputs.double())
    rotated = jacobian.rotate(inputs, outputs)
    agree(rotated.to_dense(), expected.flatten(2), "rotate")
    _check_squares(rotated, rotated)


CONTRACTIONS: Mapping[str, Callable[[LayerJacobian, LayerJacobian], None]] = {
    "addition": _check_addition,
    "bias_cross": _check_bias_cross,
    "description": _check_description,
    "gram": _check_gram,
    "jvp": _check_jvp,
    "kronecker_factors": _check_kronecker_factors,
    "of_examples": _check_of_examples,
    "reduced": _check_reduced,
    "rotate": _check_rotate,
    "second_moment": _check_second_moment,
    "squares": _check_squares,
    "vjp": _check_vjp,
}
"""What is checked, by name: each takes a pair of Jacobians and raises AssertionError."""
