"""Equally many outputs on all processes."""

import pytest

from nngeo_core import ShapeError
from nngeo_core.parallel.outputs import check_equally_many


@pytest.mark.parametrize(("numbers", "expected"), [([3, 0, 3], 3), ([0, 0], 0), ([], 0), ([7], 7)])
def test_processes_without_examples_have_no_say(numbers: list[int], expected: int) -> None:
    assert check_equally_many(numbers, "a pass") == expected


def test_different_numbers_are_named() -> None:
    with pytest.raises(
        ShapeError, match=r"^a pass: the examples of different processes have 2, 3 outputs each; one matrix"
    ):
        check_equally_many([3, 0, 2, 3], "a pass")
