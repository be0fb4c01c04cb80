"""Poisson likelihood: counts, given logarithms of their rates."""

import math
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import ShapeError
from nngeo_core.likelihoods.base import Likelihood

__all__ = ["PoissonLogRate"]


class PoissonLogRate(Likelihood):
    """Independent counts: y_k | x ~ Poisson(exp(f(x)_k)) with outputs (n, ...) of c logarithms of rates.

    The metric is diagonal, L = diag(exp(f)); F is the Gauss-Newton matrix of torch's PoissonNLLLoss(log_input=True).

    Example:
        >>> PoissonLogRate().metric(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([[1., 1.]])
    """

    name = "poisson"

    def check(self, outputs: Tensor) -> None:
        """Outputs are (n, ...): any shape does."""

    def n_output(self, outputs: Tensor) -> int:
        """Number of counts."""
        return math.prod(outputs.shape[1:])

    def n_directions(self, outputs: Tensor, targets: Any = None) -> int:
        """One direction for each count."""
        return math.prod(outputs.shape[1:])

    def directions(self, outputs: Tensor, targets: Any, chosen: slice) -> Tensor:
        """exp(f_k / 2) e_k for the chosen counts k, shape (k, *outputs)."""
        units = torch.eye(math.prod(outputs.shape[1:]), dtype=outputs.dtype, device=outputs.device)[chosen]
        return units.view(-1, 1, *outputs.shape[1:]) * (outputs / 2).exp()

    def metric(self, outputs: Tensor, u: Tensor, targets: Any = None) -> Tensor:
        """exp(f) u, entry by entry."""
        return outputs.exp() * u

    def sample(self, outputs: Tensor, uniform: Tensor) -> Tensor:
        """The smallest y with P(count <= y) >= uniform, by bisection."""
        rate = outputs.double().exp()
        low, high = torch.full_like(rate, -1.0), (rate + 40 * rate.sqrt() + 80).ceil()
        while True:
            middle = ((low + high) / 2).floor()
            between = (low < middle) & (middle < high)  # beyond 2^53 not every whole number is a float64
            if not between.any():
                return high.to(outputs.dtype)
            enough = torch.special.gammaincc(middle + 1, rate) >= uniform
            low, high = torch.where(between & ~enough, middle, low), torch.where(between & enough, middle, high)

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The residual y - exp(f)."""
        if y.shape != outputs.shape:
            raise ShapeError(
                f"variant '{self.name}' expects counts of the outputs' shape {tuple(outputs.shape)}, got {tuple(y.shape)}"
            )
        return y.to(outputs.dtype) - outputs.exp()
