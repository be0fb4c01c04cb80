"""Regression with a predicted variance, as a likelihood for nngeo."""

from typing import Any

import torch
from torch import Tensor

from nngeo_core import Likelihood, ShapeError, hookimpl

__all__ = ["HeteroscedasticGaussian", "nngeo_likelihoods"]

nngeo_api_version = 1


class HeteroscedasticGaussian(Likelihood):
    """p(y | x) = N(y; m(x), diag exp s(x)): outputs (n, 2k) are k means m, then k logarithms s of variances.

    The metric is diagonal: exp(-s) for the means, 1/2 for the log-variances, and nothing between them. The model is that of
    Nix & Weigend (1994).
    """

    name = "heteroscedastic"

    def check(self, outputs: Tensor) -> None:
        """Outputs are (n, 2k).

        Raises:
            ShapeError: They are not.
        """
        if outputs.ndim != 2 or outputs.shape[1] % 2:
            raise ShapeError(
                f"variant '{self.name}' expects outputs of shape (n, 2k), k means and then k log-variances; got "
                f"{tuple(outputs.shape)}"
            )

    def n_output(self, outputs: Tensor) -> int:
        """The number k of values predicted."""
        return outputs.shape[1] // 2

    def n_directions(self, outputs: Tensor, targets: Any = None) -> int:
        """One direction for each mean and each log-variance."""
        return outputs.shape[1]

    def directions(self, outputs: Tensor, targets: Any, chosen: slice) -> Tensor:
        """Columns of the diagonal root of L, shape (c, n, 2k)."""
        return torch.diag_embed(self._metric(outputs).sqrt())[:, chosen].transpose(0, 1)

    def metric(self, outputs: Tensor, u: Tensor, targets: Any = None) -> Tensor:
        """L u, entry by entry."""
        return self._metric(outputs) * u

    def draws_shape(self, outputs: Tensor) -> tuple[int, ...]:
        """One uniform number for each of the k values."""
        return (self.n_output(outputs),)

    def sample(self, outputs: Tensor, uniform: Tensor) -> Tensor:
        """y = m + exp(s / 2) z with z standard normal, shape (n, k)."""
        means, logarithms = outputs.chunk(2, 1)
        return means + (logarithms / 2).exp() * torch.special.ndtri(uniform).to(outputs.dtype)

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """exp(-s) (y - m) for the means, (exp(-s) (y - m)^2 - 1) / 2 for the log-variances."""
        means, logarithms = outputs.chunk(2, 1)
        if y.shape != means.shape:
            raise ShapeError(f"variant '{self.name}' expects targets {tuple(means.shape)}, got {tuple(y.shape)}")
        residuals, precisions = y.to(outputs.dtype) - means, (-logarithms).exp()
        return torch.cat((precisions * residuals, (precisions * residuals.square() - 1) / 2), 1)

    def _metric(self, outputs: Tensor) -> Tensor:
        """The diagonal of L, shape (n, 2k)."""
        logarithms = outputs.chunk(2, 1)[1]
        return torch.cat(((-logarithms).exp(), torch.full_like(logarithms, 0.5)), 1)


@hookimpl
def nngeo_likelihoods() -> list[type[Likelihood]]:
    """The likelihood, for users to name."""
    return [HeteroscedasticGaussian]
