"""How layers are kept and contracted: every way, every pairing, some directions alone, and structures that differ."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from nngeo_core import (
    DenseJacobian,
    IndexJacobian,
    KroneckerJacobian,
    KroneckerLayout,
    LayerJacobian,
    ScaleShiftJacobian,
    SumJacobian,
)
from nngeo_core.jacobians.contraction import GramMethod, Pairing
from nngeo_core.testing import relative_error
from nngeo_ntk.contract import contraction, kept_form
from nngeo_ntk.gradient_rows import GradientRows

PAIRINGS, METHODS = get_args(Pairing), (None, *get_args(GramMethod))
DTYPE = torch.float64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


def kronecker(n: int, s: int, q: int = 1, bias: bool = True, c: int = 3) -> LayerJacobian:
    return KroneckerJacobian(drawn(n, s, q, 4), drawn(c, n, s, q, 5, seed=n), KroneckerLayout(q, 5, 4, bias))


def lookup(n: int, s: int, c: int = 3) -> LayerJacobian:
    """Indices as a view that is not contiguous, padding among them."""
    index = torch.randint(-1, 6, (s, n), generator=torch.Generator().manual_seed(n)).T
    return IndexJacobian(index, drawn(c, n, s, 4, seed=n), 6)


def normalization(n: int, s: int, c: int = 3) -> LayerJacobian:
    return ScaleShiftJacobian(drawn(n, s, 4), drawn(c, n, s, 4, seed=n), True)


def tied(n: int, s: int) -> LayerJacobian:
    head = KroneckerJacobian(drawn(n, s, 1, 4), drawn(3, n, s, 1, 6, seed=n), KroneckerLayout(1, 6, 4, False))
    return SumJacobian((lookup(n, s), head))


PAIRS = {
    "one-position": (kronecker(5, 1), kronecker(2, 1)),
    "groups": (kronecker(5, 3, 2), kronecker(2, 3, 2)),
    "no-bias": (kronecker(5, 40, 1, False), kronecker(2, 40, 1, False)),
    "other-numbers-of-positions": (kronecker(5, 7), kronecker(2, 2)),
    "look-ups": (lookup(5, 3), lookup(2, 4)),
    "many-look-ups": (lookup(5, 60), lookup(2, 60)),
    "normalization": (normalization(5, 3), normalization(2, 3)),
    "tied": (tied(5, 3), tied(2, 2)),
    "dense-and-structured": (DenseJacobian(drawn(3, 5, 25)), kronecker(2, 2)),
}


def combined(first: Tensor, second: Tensor, pairing: Pairing) -> Tensor:
    whole = torch.einsum("cnd,kmd->cnkm", first, second)
    equal = torch.einsum("cncm->cnm", whole) if pairing != "all" else whole
    return equal.sum(0) if pairing == "summed" else equal


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", PAIRS)
def test_every_way_is_the_dense_one(pair: str, method: GramMethod | None, pairing: Pairing) -> None:
    first, second = PAIRS[pair]
    kept = [kept_form(jacobian, method, pairing, DTYPE) for jacobian in (first, second)]
    found = contraction(*kept, method, pairing, DTYPE)
    for rows, columns in ((slice(0, 3), slice(0, 3)), (slice(1, 3), slice(0, 2))):
        expected = combined(first.to_dense()[rows], second.to_dense()[columns], pairing)
        total = torch.ones_like(expected)
        found.add_(total, rows, columns, pairing)
        assert relative_error(total - 1, expected) <= 1e-12


def test_many_positions_of_a_small_layer_wait_as_gradients() -> None:
    assert isinstance(kept_form(kronecker(5, 40), None, "all", DTYPE), GradientRows)
    assert isinstance(kept_form(kronecker(5, 1), None, "all", DTYPE), KroneckerJacobian)
    assert isinstance(kept_form(kronecker(5, 1), "gradients", "all", DTYPE), GradientRows)


@pytest.mark.parametrize("layout", [KroneckerLayout(2, 5, 4, True), KroneckerLayout(1, 5, 4, True, 2)])
def test_gradients_can_be_put_in_the_order_of_the_parameters(layout: KroneckerLayout) -> None:
    jacobian = KroneckerJacobian(drawn(2, 3, layout.groups, 4), drawn(3, 2, 3, layout.groups, 5), layout)
    rows = kept_form(jacobian, "gradients", "all", DTYPE)
    assert isinstance(rows, GradientRows)
    assert relative_error(rows.in_order().weight, jacobian.to_dense()) <= 1e-12
    assert rows.nbytes == jacobian.to_dense().nbytes


def test_sums_are_kept_in_the_dtype_that_is_asked_for() -> None:
    half = KroneckerJacobian(
        drawn(2, 1, 1, 4).bfloat16(), drawn(3, 2, 1, 1, 5).bfloat16(), KroneckerLayout(1, 5, 4, True)
    )
    total = torch.zeros(3, 2, 3, 2)
    kept = kept_form(half, None, "all", torch.float32)
    contraction(kept, kept, None, "all", torch.float32).add_(total, slice(0, 3), slice(0, 3), "all")
    dense = KroneckerJacobian(half.a.float(), half.g.float(), half.layout).to_dense()
    assert relative_error(total, combined(dense, dense, "all")) <= 1e-6
