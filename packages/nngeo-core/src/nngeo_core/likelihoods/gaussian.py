"""Gaussian likelihood around the outputs: regression."""

import torch
from torch import Tensor

from nngeo_core.errors import ShapeError
from nngeo_core.likelihoods.base import Likelihood

__all__ = ["GaussianLikelihood"]


class GaussianLikelihood(Likelihood):
    """Regression with unit covariance: p(y | x) = N(y; f(x), I) with outputs (n, c).

    The metric is the identity, and so are the directions; F is the Gauss-Newton matrix (1/n) sum_i J_i^T J_i of the loss
    1/2 |f(x) - y|^2 (Martens 2020, section 9.1).

    Example:
        >>> import torch
        >>> GaussianLikelihood().directions(torch.zeros(1, 2), None, slice(0, 2)).squeeze(1)
        tensor([[1., 0.],
                [0., 1.]])
    """

    name = "regression"

    def check(self, outputs: Tensor) -> None:
        """Outputs are (n, c).

        Raises:
            ShapeError: They are not.
        """
        if outputs.ndim != 2:
            raise ShapeError(
                f"variant 'regression' expects outputs of shape (n, c), got {tuple(outputs.shape)}; "
                "give a `function` that returns such a tensor"
            )

    def n_output(self, outputs: Tensor) -> int:
        """Number of values predicted."""
        return outputs.shape[1]

    def n_directions(self, outputs: Tensor) -> int:
        """One direction for each value predicted."""
        return outputs.shape[1]

    def directions(self, outputs: Tensor, targets: Tensor | None, chosen: slice) -> Tensor:
        """The chosen unit vectors, the same for every example, shape (k, n, c)."""
        n, c = outputs.shape
        units = torch.eye(c, dtype=outputs.dtype, device=outputs.device)[chosen]
        return units.unsqueeze(1).expand(-1, n, -1).contiguous()

    def metric(self, outputs: Tensor, u: Tensor) -> Tensor:
        """U itself."""
        return u
