"""Likelihood: what a model's outputs mean, as directions V with V V^T = L and as products with L."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.likelihoods.targets import targets_of

__all__ = ["Likelihood"]


class Likelihood(ABC):
    """The metric L_i on the outputs of each example, from which Fisher matrices F = (1/n) sum_i J_i^T L_i J_i are made.

    The generator sends the directions backward as output gradients; it never differentiates a loss, so that no hidden
    average over examples or outputs enters. L may depend on the targets of the examples, or on draws: `targets` fetches
    them from the batch, and the other methods get what it returned.

    A likelihood of one's own needs the five abstract methods; `sample`, `score` and `draws_shape` serve Monte Carlo and
    empirical Fisher matrices.
    """

    name: ClassVar[str]
    centred: bool = False
    """Whether the mean over all examples is subtracted from the one gradient that each of them has."""
    seed: int | None = None
    """What its draws start from; None where it draws nothing."""
    stream: int = 0
    """Which of many independent streams of draws from one seed: the rank among processes that share the examples."""

    @abstractmethod
    def check(self, outputs: Tensor) -> None:
        """Raise `ShapeError` unless outputs of this shape, examples first, can be meant."""

    @abstractmethod
    def n_output(self, outputs: Tensor) -> int:
        """The number of classes, or of values predicted."""

    @abstractmethod
    def n_directions(self, outputs: Tensor, targets: Any = None) -> int:
        """c, the number of directions that `directions` has in all."""

    @abstractmethod
    def directions(self, outputs: Tensor, targets: Any, chosen: slice) -> Tensor:
        """Columns of a square root of L: V V^T = L.

        Args:
            outputs: The model's outputs, shape (n, ...), without graph.
            targets: What `targets` returned for these examples.
            chosen: Which directions, with start and stop given.

        Returns:
            Shape (c, n, ...) for c = stop - start: direction by direction, the output gradient of every example.
        """

    @abstractmethod
    def metric(self, outputs: Tensor, u: Tensor, targets: Any = None) -> Tensor:
        """L u, example by example: shape (n, ...) for u of the outputs' shape."""

    def n_negative(self, outputs: Tensor, targets: Any = None) -> int:
        """How many of the directions, the last ones, enter with a minus sign: L = V_+ V_+^T - V_- V_-^T."""
        return 0

    def targets(self, examples: Any) -> Any:
        """What L needs to know of a batch besides the outputs; by default nothing."""
        return None

    def position_mask(self, examples: Any) -> Tensor | None:
        """Which of the T positions of each example count, shape (n, T); None if all of them do."""
        return None

    def spread(self, mask: Tensor, outputs: Tensor) -> Tensor:
        """The mask (n, T) as a tensor that broadcasts to the outputs' shape."""
        raise UnsupportedOperationError(f"{type(self).__name__} has no positions that a mask could leave out")

    def observed(self, examples: Any) -> Any:
        """The targets y that came with the examples, as `score` takes them, and a loss of the user's."""
        return targets_of(examples)

    def draws_shape(self, outputs: Tensor) -> tuple[int, ...]:
        """How many independent uniform numbers `sample` takes for each example, as a shape."""
        return tuple(outputs.shape[1:])

    def sample(self, outputs: Tensor, uniform: Tensor) -> Tensor:
        """Targets y drawn from p(y | outputs) by uniform numbers in (0, 1), shape (n, *draws_shape)."""
        raise UnsupportedOperationError(f"{type(self).__name__} cannot draw targets: it has no method `sample`")

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The gradient of log p(y | outputs) with respect to the outputs, of their shape."""
        raise UnsupportedOperationError(f"{type(self).__name__} has no `score`: the gradient of log p(y | outputs)")
