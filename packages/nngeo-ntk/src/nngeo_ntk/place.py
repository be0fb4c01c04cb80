"""What every contraction does, and where: directions and examples of both sides."""

from abc import ABC, abstractmethod
from typing import TypeAlias

from torch import Tensor

from nngeo_core.jacobians.contraction import Pairing

__all__ = ["Contraction", "Place", "within"]

Place: TypeAlias = tuple[slice, slice]
"""Which directions, and which examples."""


class Contraction(ABC):
    """J J'^T of one layer, for chosen directions and examples of both."""

    @abstractmethod
    def add_(self, total: Tensor, rows: Place, columns: Place, pairing: Pairing) -> None:
        """Add the contraction of some rows and columns in place: (c, n, k, m), (c, n, m) or (n, m) as `pairing` says."""

    def write_(self, total: Tensor, rows: Place, columns: Place, pairing: Pairing) -> None:
        """Write the contraction over what the tensor holds, with the arguments of `add_`."""
        self.add_(total.zero_(), rows, columns, pairing)


def within(whole: slice, some: slice) -> slice:
    """Some of what a slice takes, as a slice of what that is taken of."""
    return slice(whole.start + some.start, whole.start + some.stop)
