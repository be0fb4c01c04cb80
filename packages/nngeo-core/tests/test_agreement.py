"""Relative differences, cosines and residuals of vectors, also of those that are zero."""

import pytest
import torch

from nngeo_core.verbs.comparison.agreement import products_agree, relative_difference, solutions_agree

V = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
HALVES = [slice(0, 2), slice(2, 4)]


def test_relative_differences_are_signed() -> None:
    found = relative_difference(torch.tensor([1.0, 3.0, -3.0]), torch.tensor([2.0, 2.0, -2.0]))
    assert found.tolist() == [-0.5, 0.5, 0.5]


def test_products_are_compared_by_place() -> None:
    exact, approximate = torch.tensor([1.0, 0.0, 2.0, 0.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])
    (forms, cosines) = products_agree(V, exact, approximate, HALVES)
    assert forms.tolist() == [1.0, -0.5]
    assert cosines.tolist() == [0.0, 1.0]


def test_solutions_are_compared_with_the_vector() -> None:
    found = torch.tensor([1.0, 2.0, -1.0, -0.5], dtype=torch.float64)
    cosines, residuals = solutions_agree(V, found, [slice(0, 4), *HALVES])
    assert cosines.tolist() == pytest.approx([5.75 / 6.25, 1.0, 0.75 / 1.25])
    assert residuals.tolist() == pytest.approx([1 / 6.25**0.5, 0.0, 1 / 1.25**0.5])


def test_two_zeros_agree_and_one_does_not() -> None:
    zero = torch.zeros(4, dtype=torch.float64)
    both = products_agree(V, zero, zero, [slice(0, 4)])[:, 0]
    one = products_agree(V, zero, V, [slice(0, 4)])[:, 0]
    assert both.tolist() == [0.0, 1.0]
    assert one[0].isnan() and one[1] == 0
    assert solutions_agree(zero, zero, [slice(0, 4), slice(0, 0)]).tolist() == [[1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_float32_numbers_whose_squares_leave_their_range(scale: float) -> None:
    exact, approximate = V.float() * scale, V.float() * (2 * scale)
    forms, cosines = products_agree(V.float(), exact, approximate, [slice(0, 4)])
    assert (float(forms), float(cosines)) == pytest.approx((1.0, 1.0))
