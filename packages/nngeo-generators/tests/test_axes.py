"""Where the examples are: the axis that grows with their number."""

from typing import Any

import pytest
import torch

from nngeo_generators.axes import example_axes, example_axis


@pytest.mark.parametrize(("alone", "together", "axis"), [
    ((1, 3), (4, 3), 0), ((5, 1, 3), (5, 4, 3), 1), ((4, 1, 3), (4, 4, 3), 1), ((1, 1), (1, 4), 1), ((5, 3), (5, 3), None),
    ((), (), None),
])  # fmt: skip
def test_the_axis_that_grows(alone: tuple[int, ...], together: tuple[int, ...], axis: int | None) -> None:
    """Also where another axis is as long as the batch."""
    assert example_axis(alone, together) == axis


@pytest.mark.parametrize(("alone", "together"), [
    ((5, 3), (20, 3)), ((1, 1), (4, 4)), ((1, 3), (4, 1, 3)), ((0, 3), (2, 3)), ((1, 3), (4, 5)),
])  # fmt: skip
def test_other_differences_are_refused(alone: tuple[int, ...], together: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        example_axis(alone, together)
    assert str(error.value) == f"it has shape {together} for all examples and {alone} for one of them alone"


def test_arguments_are_located_one_by_one() -> None:
    alone = [torch.ones(1, 3), torch.ones(6), "mean", 2, None, torch.float64]
    together = [torch.ones(4, 3), torch.ones(6), "mean", 2, None, torch.float64]
    assert example_axes(alone, together) == (0, None, None, None, None, None)


@pytest.mark.parametrize(("alone", "together", "message"), [
    ([1], [4], "an argument is 4 for all examples and 1 for one of them alone"),
    ([None], [torch.ones(1)], r"an argument is tensor\(\[1.\]\) for all examples and None"),
    ([True], [1], "an argument is 1 for all examples and True for one"),
    ([1], [1, 1], "it has 2 arguments for all examples and 1 for one of them alone"),
])  # fmt: skip
def test_arguments_that_follow_the_number_of_examples_otherwise_are_refused(
    alone: list[Any], together: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        example_axes(alone, together)
