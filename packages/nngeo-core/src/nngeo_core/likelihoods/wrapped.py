"""A likelihood around another one: the outputs mean the same, and the metric is another."""

from typing import Any

from torch import Tensor

from nngeo_core.likelihoods.base import Likelihood

__all__ = ["Wrapped"]


class Wrapped(Likelihood):
    """What is the same for every metric made from a likelihood: which outputs it takes, and which positions count.

    Subclasses give directions; the metric is their V V^T. Targets cannot be drawn from it: the metric is another one.

    Args:
        inner: The likelihood.
    """

    def __init__(self, inner: Likelihood) -> None:
        self.inner = inner

    def check(self, outputs: Tensor) -> None:
        """As the inner likelihood does."""
        self.inner.check(outputs)

    def n_output(self, outputs: Tensor) -> int:
        """As the inner likelihood says."""
        return self.inner.n_output(outputs)

    def metric(self, outputs: Tensor, u: Tensor, targets: Any = None) -> Tensor:
        """V V^T u."""
        directions = self.directions(outputs, targets, slice(0, self.n_directions(outputs, targets)))
        weights = (directions * u).unsqueeze(-1).flatten(2).sum(2)
        return (directions * weights.view(*weights.shape, *[1] * (u.ndim - 1))).sum(0)

    def position_mask(self, examples: Any) -> Tensor | None:
        """As the inner likelihood says."""
        return self.inner.position_mask(examples)

    def spread(self, mask: Tensor, outputs: Tensor) -> Tensor:
        """As the inner likelihood does."""
        return self.inner.spread(mask, outputs)

    def observed(self, examples: Any) -> Any:
        """As the inner likelihood finds them."""
        return self.inner.observed(examples)
