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
from nngeo_ntk.contract import Kept, contraction, waits_as_gradients
from nngeo_ntk.gradient_rows import gradient_rows

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
    "tied-few-positions": (tied(5, 1), tied(2, 1)),
    "dense-and-structured": (DenseJacobian(drawn(3, 5, 25)), kronecker(2, 2)),
}


def kept(jacobian: LayerJacobian, method: GramMethod | None, pairing: Pairing) -> Kept:
    waits = waits_as_gradients(jacobian, method, pairing, jacobian.shape[1])
    return gradient_rows(jacobian, DTYPE) if waits else jacobian


def combined(first: Tensor, second: Tensor, pairing: Pairing) -> Tensor:
    whole = torch.einsum("cnd,kmd->cnkm", first, second)
    equal = torch.einsum("cncm->cnm", whole) if pairing != "all" else whole
    return equal.sum(0) if pairing == "summed" else equal


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", PAIRS)
def test_every_way_is_the_dense_one(pair: str, method: GramMethod | None, pairing: Pairing) -> None:
    first, second = PAIRS[pair]
    sides = kept(first, method, pairing), kept(second, method, pairing)
    whole, parts = slice(0, 3), (slice(1, 3), slice(0, 2))
    for rows, columns in (
        ((whole, slice(0, 5)), (whole, slice(0, 2))),
        ((parts[0], slice(2, 4)), (parts[1], slice(1, 2))),
    ):
        expected = combined(first.to_dense()[rows], second.to_dense()[columns], pairing)
        for turned in (False, True):
            total = examples_first(torch.ones_like(expected)) if turned else torch.ones_like(expected)
            contraction(*sides, method, pairing, DTYPE, turned).add_(total, rows, columns, pairing)
            assert relative_error(total - 1, expected) <= 1e-12


def examples_first(tile: Tensor) -> Tensor:
    """The same with another order in memory, where there are directions."""
    return (
        tile.transpose(0, 1).contiguous().transpose(0, 1)
        if tile.ndim == 3
        else (tile.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2) if tile.ndim == 4 else tile)
    )


def test_inputs_too_large_for_a_block_are_multiplied_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nngeo_ntk.positions.BLOCK_BYTES", 0)
    monkeypatch.setattr("nngeo_ntk.positions.blocks", lambda count, each: (slice(k, k + 1) for k in range(count)))
    monkeypatch.setattr("nngeo_ntk.tied.blocks", lambda count, each: (slice(k, k + 1) for k in range(count)))
    for pair in ("groups", "look-ups", "tied"):
        for pairing in PAIRINGS:
            test_every_way_is_the_dense_one(pair, "positions", pairing)


def test_what_waits_as_gradients() -> None:
    many, one = kronecker(5, 40), kronecker(5, 1)
    assert waits_as_gradients(many, None, "all", 5)
    assert not waits_as_gradients(one, None, "all", 5)
    assert waits_as_gradients(one, "gradients", "all", 5)
    assert not waits_as_gradients(many, "positions", "all", 5)
    assert waits_as_gradients(normalization(5, 3), "positions", "all", 5)
    assert waits_as_gradients(tied(5, 3), None, "all", 5)
    assert not waits_as_gradients(tied(5, 3), "positions", "all", 5)
    index, g, a, other = (
        torch.zeros(2, 1, dtype=torch.int64),
        drawn(1, 2, 1, 64),
        drawn(2, 1, 1, 64),
        drawn(1, 2, 1, 1, 999),
    )
    head = KroneckerJacobian(a, other, KroneckerLayout(1, 999, 64, False))
    assert not waits_as_gradients(SumJacobian((IndexJacobian(index, g, 999), head)), None, "all", 2)


@pytest.mark.parametrize("layout", [KroneckerLayout(2, 5, 4, True), KroneckerLayout(1, 5, 4, True, 2)])
def test_gradients_can_be_put_in_the_order_of_the_parameters(layout: KroneckerLayout) -> None:
    jacobian = KroneckerJacobian(drawn(2, 3, layout.groups, 4), drawn(3, 2, 3, layout.groups, 5), layout)
    rows = gradient_rows(jacobian, DTYPE)
    assert relative_error(rows.in_order().rows.transpose(0, 1), jacobian.to_dense()) <= 1e-12
    assert rows.nbytes == jacobian.to_dense().nbytes


def test_sums_are_kept_in_the_dtype_that_is_asked_for() -> None:
    half = KroneckerJacobian(
        drawn(2, 1, 1, 4).bfloat16(), drawn(3, 2, 1, 1, 5).bfloat16(), KroneckerLayout(1, 5, 4, True)
    )
    total = torch.zeros(3, 2, 3, 2)
    whole = (slice(0, 3), slice(0, 2))
    contraction(half, half, None, "all", torch.float32).add_(total, whole, whole, "all")
    dense = KroneckerJacobian(half.a.float(), half.g.float(), half.layout).to_dense()
    assert relative_error(total, combined(dense, dense, "all")) <= 1e-6
