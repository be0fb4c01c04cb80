"""Effective rank and participation ratio."""

import math

import pytest
import torch

from nngeo_core import GramMatrix
from nngeo_core.testing import MODELS, relative_error
from nngeo_ntk import FMatTrace, effective_rank, participation_ratio


@pytest.mark.parametrize(("values", "rank", "ratio"), [([2.0, 2, 2, 2], 4, 4), ([1.0, 0, 0], 1, 1), ([0.0, 0], 0, 0)])
def test_of_equal_eigenvalues_both_are_their_number(values: list[float], rank: float, ratio: float) -> None:
    kernel = FMatTrace(data=torch.diag(torch.tensor(values)))
    assert math.isclose(effective_rank(kernel).item(), rank, rel_tol=1e-6)
    assert math.isclose(participation_ratio(kernel).item(), ratio, rel_tol=1e-6)


def test_of_others_they_follow_the_definition() -> None:
    kernel = FMatTrace(data=torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert math.isclose(effective_rank(kernel).item(), math.exp(entropy), rel_tol=1e-12)
    assert math.isclose(participation_ratio(kernel).item(), 16 / 10, rel_tol=1e-12)


def test_the_ratio_needs_no_entries() -> None:
    case = MODELS["mlp"]()
    dense, implicit = (participation_ratio(GramMatrix(case.model, case.inputs, kind)) for kind in ("dense", "implicit"))
    assert relative_error(implicit, dense) <= 1e-10
