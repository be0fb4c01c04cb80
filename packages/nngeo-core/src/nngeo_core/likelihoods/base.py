"""Likelihood: what a model's outputs mean, as directions V with V V^T = L and as products with L."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

__all__ = ["Likelihood"]


class Likelihood(ABC):
    """The metric L_i on the outputs of each example, from which Fisher matrices F = (1/n) sum_i J_i^T L_i J_i are made.

    The generator sends the directions backward as output gradients; it never differentiates a loss, so that no hidden
    average over examples or outputs enters.
    """

    name: ClassVar[str]
    needs_targets: ClassVar[bool] = False
    """Whether `directions` reads the targets of the batch."""

    @abstractmethod
    def check(self, outputs: Tensor) -> None:
        """Raise `ShapeError` unless outputs of this shape, examples first, can be meant."""

    @abstractmethod
    def n_output(self, outputs: Tensor) -> int:
        """The number of classes, or of values predicted."""

    @abstractmethod
    def n_directions(self, outputs: Tensor) -> int:
        """c, the number of directions that `directions` has in all."""

    @abstractmethod
    def directions(self, outputs: Tensor, targets: Tensor | None, chosen: slice) -> Tensor:
        """Columns of a square root of L: V V^T = L.

        Args:
            outputs: The model's outputs, shape (n, ...), without graph.
            targets: The targets of the batch where `needs_targets`, else None.
            chosen: Which directions, with start and stop given.

        Returns:
            Shape (c, n, ...) for c = stop - start: direction by direction, the output gradient of every example.
        """

    @abstractmethod
    def metric(self, outputs: Tensor, u: Tensor) -> Tensor:
        """L u, example by example: shape (n, ...) for u of the outputs' shape."""
