"""J J'^T from Gram matrices of positions: every order that it is formed in, against one einsum."""

import pytest
import torch
from torch import Tensor

from nngeo_core.jacobians.contraction import Pairing, in_sequence_is_cheaper
from nngeo_core.jacobians.gram import LARGE, add_gram_of_positions_

ORACLES: dict[Pairing, str] = {
    "all": "qnsmt,cnsqw,kmtqw->cnkm",
    "equal": "qnsmt,cnsqw,cmtqw->cnm",
    "summed": "qnsmt,cnsqw,cmtqw->nm",
}

# rows (c, n, s), columns (k, m, t), w
IN_SEQUENCE = ((40, 3, 6), (40, 4, 5), 2)
SMALL = ((2, 3, 4), (3, 2, 5), 7)
LARGE_ONES = ((5, 40, 2), (6, 31, 3), 7)
LARGE_SUMMED = ((2, 190, 2), (2, 190, 3), 4)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_cases_are_on_both_sides_of_each_choice() -> None:
    assert [in_sequence_is_cheaper(*case) for case in (IN_SEQUENCE, SMALL, LARGE_ONES)] == [True, False, False]
    (c, n, _), (k, m, _), _ = LARGE_ONES
    assert c * n * k * m >= LARGE
    (c, n, _), (k, m, _), _ = SMALL
    assert c * n * k * m < LARGE
    assert LARGE_SUMMED[0][1] * LARGE_SUMMED[1][1] >= LARGE


@pytest.mark.parametrize("examples_first", [False, True])
@pytest.mark.parametrize(
    ("case", "pairing"),
    [
        (IN_SEQUENCE, "all"),
        (SMALL, "all"),
        (LARGE_ONES, "all"),
        (((3, 9, 2), (3, 4, 3), 5), "equal"),
        (((3, 9, 2), (3, 4, 3), 5), "summed"),
        (LARGE_SUMMED, "equal"),
        (LARGE_SUMMED, "summed"),
    ],
)
def test_it_is_added_to_what_is_there(
    case: tuple[tuple[int, int, int], tuple[int, int, int], int], pairing: Pairing, examples_first: bool
) -> None:
    (c, n, s), (k, m, t), w = case
    inputs = randn(2, n, s, m, t, seed=0)
    g, other = randn(c, n, s, 2, w, seed=1), randn(k, m, t, 2, w, seed=2)
    products = torch.einsum(ORACLES[pairing], inputs, g, other)
    before = randn(*products.shape, seed=3)
    total = before.clone()
    if examples_first:  # the last axes lie in memory where the first ones do, and the other way round
        total = before.transpose(0, 1).contiguous().transpose(0, 1)
    add_gram_of_positions_(total, inputs, g, other, pairing)
    assert (total - before - products).norm() <= 1e-12 * products.norm()
