"""Which order of contraction is taken: the counts, and the results on both sides of each choice."""

import pytest
import torch

from nngeo_core.jacobians.contraction import (
    BLOCK_BYTES,
    blocks,
    gram_costs,
    grams_are_cheaper,
    norm_by_positions_is_cheaper,
    outputs_come_first,
    outputs_go_at_once,
    pairs_are_cheaper,
)
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.testing.jacobian_contract import CONTRACTIONS


def kronecker(c: int, n: int, s: int, q: int, outputs: int, inputs: int, seed: int = 0) -> KroneckerJacobian:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, s, q, inputs, dtype=torch.float64, generator=generator)
    g = torch.randn(c, n, s, q, outputs, dtype=torch.float64, generator=generator)
    return KroneckerJacobian(a, g, KroneckerLayout(q, outputs, inputs, True))


@pytest.mark.parametrize(
    ("count", "bytes_each", "limit"), [(10, 1, 3), (7, 5, 5), (1, 100, 7), (12, 0, 5), (100, 3, 1000)]
)
def test_blocks_cover_the_range_once_within_the_limit(count: int, bytes_each: int, limit: int) -> None:
    found = list(blocks(count, bytes_each, limit))
    assert [k for block in found for k in range(count)[block]] == list(range(count))
    sizes = [block.stop - block.start for block in found]
    assert max(sizes) - min(sizes) <= 1
    assert all(size == 1 or size * bytes_each <= limit for size in sizes)


def test_blocks_are_even_rather_than_full() -> None:
    assert [block.stop - block.start for block in blocks(10, 1, 9)] == [5, 5]


def test_blocks_of_nothing_are_none() -> None:
    assert list(blocks(0, 8)) == []


def test_blocks_stay_under_the_size_of_temporaries() -> None:
    assert [block.stop - block.start for block in blocks(4, BLOCK_BYTES // 2 + 1)] == [1, 1, 1, 1]
    assert [block.stop - block.start for block in blocks(4, BLOCK_BYTES // 2)] == [2, 2]


@pytest.mark.parametrize("chosen", [True, False])
def test_gram_agrees_in_both_orders(chosen: bool) -> None:
    """Few positions of a large layer go by Gram matrices of positions, many positions of a small one by gradients."""
    c, n, s, outputs, inputs = (2, 3, 2, 60, 50) if chosen else (2, 3, 40, 2, 3)
    rows, columns = kronecker(c, n, s, 2, outputs, inputs), kronecker(3, 2, s, 2, outputs, inputs, seed=1)
    assert grams_are_cheaper((c, n, s), (3, 2, s), outputs, inputs) is chosen
    CONTRACTIONS["gram"](rows, columns)


@pytest.mark.parametrize("chosen", [True, False])
def test_second_moment_agrees_in_both_orders(chosen: bool) -> None:
    s = 1 if chosen else 2
    assert outputs_come_first(3, 4, s, 1) is chosen
    jacobian = kronecker(3, 4, s, 1, 3, 4)
    CONTRACTIONS["second_moment"](jacobian, jacobian)


@pytest.mark.parametrize("leading_inputs", [1, 2, 36])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    ("n", "outputs", "inputs", "at_once"), [(4, 3, 4, True), (4, 3, 36, False), (900, 60, 4, False)]
)
def test_second_moments_of_all_outputs_at_once_or_one_by_one(
    n: int, outputs: int, inputs: int, at_once: bool, has_bias: bool, leading_inputs: int
) -> None:
    """Few inputs go at once, unless that takes more memory than a block."""
    assert outputs_come_first(3, n, 1, 1) and outputs_go_at_once(n, outputs, inputs, 8) is at_once
    whole = kronecker(3, n, 1, 1, outputs, inputs)
    leading = min(leading_inputs, inputs)
    jacobian = KroneckerJacobian(whole.a, whole.g, KroneckerLayout(1, outputs, inputs, has_bias, leading))
    rows, found = jacobian.to_dense().flatten(0, 1), jacobian.second_moment()
    torch.testing.assert_close(found, rows.T @ rows, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(
    ("c", "s", "by_pairs"), [(3, 2, True), (3, 5, True), (3, 6, False), (9, 16, True), (9, 17, False)]
)
@pytest.mark.parametrize("by_positions", [True, False])
def test_squares_agree_in_every_order(c: int, s: int, by_pairs: bool, by_positions: bool) -> None:
    """Few positions go by pairs of them, and the trace of a large layer by their Gram matrices."""
    outputs, inputs = (40, 30) if by_positions else (2, 2)
    assert pairs_are_cheaper(c, s) is by_pairs
    assert norm_by_positions_is_cheaper(c, s, outputs, inputs) is by_positions
    CONTRACTIONS["squares"](*[kronecker(c, 4, s, 2, outputs, inputs)] * 2)


def test_squares_by_pairs_that_cancel_are_not_negative() -> None:
    """Opposite gradients at two positions with equal inputs: the diagonal is zero, up to round-off on one side."""
    half = kronecker(3, 50, 1, 1, 20, 30)
    a, g = (torch.cat((half.a, half.a), 1).float(), torch.cat((half.g, -half.g * (1 + 1e-7)), 2).float())
    jacobian = KroneckerJacobian(a, g, half.layout)
    assert pairs_are_cheaper(3, 2)
    assert jacobian.sum_of_squares().min() >= 0
    assert jacobian.squared_norm() >= 0


@pytest.mark.parametrize("one", ["direction", "groups"])
def test_outputs_come_first_only_where_that_saves_something(one: str) -> None:
    c, q = (1, 1) if one == "direction" else (3, 2)
    assert not outputs_come_first(c, 4, 1, q)
    jacobian = kronecker(c, 4, 1, q, 3, 4)
    CONTRACTIONS["second_moment"](jacobian, jacobian)


def test_counts_are_those_of_the_multiplications() -> None:
    """One position: c n k m (G + A / (c k)) against (c n + k m) G A + c n k m G A; large layers go by positions."""
    assert grams_are_cheaper((10, 50, 1), (10, 50, 1), 100, 100)
    assert not grams_are_cheaper((1, 5, 900), (1, 5, 900), 4, 9)


def test_many_small_products_count_what_they_write() -> None:
    """A transformer's narrow layer on 17 positions: fewer multiplications in sequence, and yet gradients are faster."""
    size = (10, 64, 17)
    narrow, wide = (gram_costs(size, size, width, width) for width in (64, 768))
    assert min(narrow, key=narrow.__getitem__) == "gradients"
    assert min(wide, key=wide.__getitem__) == "positions"


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 8), (64, 8), (32, 32)])
@pytest.mark.parametrize("s", [1, 4, 16])
@pytest.mark.parametrize("c", [10, 50])
def test_products_count_what_they_write_too(c: int, s: int, inputs: int, outputs: int) -> None:
    """A narrow layer has fewer multiplications by products, and they took up to seven times as long as another order."""
    costs = gram_costs((c, 64, s), (c, 64, s), outputs, inputs)
    assert min(costs, key=costs.__getitem__) != "products"


def test_products_are_for_few_columns_positions() -> None:
    costs = gram_costs((10, 64, 400), (10, 64, 1), 64, 128)
    assert min(costs, key=costs.__getitem__) == "products"


def test_large_layers_are_contracted_in_blocks_of_examples() -> None:
    jacobian = kronecker(2, 5, 3, 1, 700, 1000)
    weight_bytes = 700 * 1000 * 8
    assert len(list(blocks(5, weight_bytes))) == 3
    dense = jacobian.to_dense()
    found = jacobian.sum_of_squares()
    assert (found - dense.square().sum((0, 1))).norm() <= 1e-12 * found.norm()
    cross = jacobian.bias_cross()
    expected = (dense[..., : 700 * 1000].unflatten(2, (700, 1000)) * dense[..., 700 * 1000 :].unsqueeze(3)).sum((0, 1))
    assert (cross - expected.flatten()).norm() <= 1e-12 * cross.norm()
