"""Whether all processes have equally many outputs for each example."""

from collections.abc import Collection

from nngeo_core.errors import ShapeError
from nngeo_core.parallel.group import Group

__all__ = ["check_equally_many", "check_outputs"]


def check_outputs(mine: Collection[int], group: Group, what: str) -> None:
    """See that the processes that saw outputs saw equally many of them for each example.

    Args:
        mine: The numbers that this process saw; none if it had no examples.
        group: The processes.
        what: The operation, for errors.

    Raises:
        ShapeError: They did not, the same on all processes.
    """
    found = group.gather_values(sorted(mine), what)
    check_equally_many([number for numbers in found for number in numbers], what)


def check_equally_many(numbers: Collection[int], what: str) -> int:
    """The one number of outputs that the examples of all processes have.

    Args:
        numbers: Those of each process; 0 of one without examples.
        what: The operation, for errors.

    Returns:
        The number; 0 if no process has examples.

    Raises:
        ShapeError: There are several.
    """
    known = sorted(set(numbers) - {0})
    if len(known) > 1:
        raise ShapeError(
            f"{what}: the examples of different processes have {', '.join(map(str, known))} outputs each; one matrix needs "
            "equally many. Give the same model and `function` on all processes, one that returns those to compare"
        )
    return known[0] if known else 0
