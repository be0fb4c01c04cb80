"""Operations that a representation may refuse, without ending the comparison."""

from collections.abc import Callable
from typing import TypeVar

from nngeo_core.errors import (
    ConvergenceError,
    NonFiniteError,
    NotPositiveDefiniteError,
    UnsupportedLayerError,
    UnsupportedOperationError,
)
from nngeo_core.verbs.comparison.clock import Clock

__all__ = ["Attempts"]

T = TypeVar("T")

_REFUSALS = (
    ConvergenceError,
    NonFiniteError,
    NotPositiveDefiniteError,
    UnsupportedLayerError,
    UnsupportedOperationError,
)


class Attempts:
    """Tries operations: of one that is refused the reason is kept, and it is not tried again.

    Args:
        clock: Notes how long those take that succeed.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.reasons: dict[str, str] = {}

    def tried(self, name: str, run: Callable[[], T], timed_as: str | None = None) -> T | None:
        """The result, or None where the operation is refused, now or before.

        Args:
            name: Of the operation, by which the reason is kept.
            run: Performs it.
            timed_as: The name that its time gets, if another one; an empty one if it is not to be timed.
        """
        if name in self.reasons:
            return None
        try:
            return run() if timed_as == "" else self.clock.timed(timed_as or name, run)
        except _REFUSALS as error:
            self.reasons[name] = str(error)
            return None
