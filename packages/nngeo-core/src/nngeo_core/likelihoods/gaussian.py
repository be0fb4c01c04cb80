"""Gaussian likelihood around the outputs: regression."""

import math
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import ShapeError
from nngeo_core.likelihoods.base import Likelihood

__all__ = ["GaussianLikelihood"]


class GaussianLikelihood(Likelihood):
    """Regression: p(y | x) = N(y; f(x), S) with outputs (n, ...) of c values, and the same covariance S for all examples.

    The metric is the inverse covariance, L = S^-1; with S = I, F is the Gauss-Newton matrix (1/n) sum_i J_i^T J_i of the loss
    1/2 |f(x) - y|^2 (Martens 2020, section 9.1). Of the outputs' axes after the first, the last runs fastest.

    Args:
        covariance: S: a variance for all values, one for each (c,), or a matrix (c, c); None is the identity.

    Raises:
        ValueError: S is not symmetric positive definite.

    Example:
        >>> GaussianLikelihood(covariance=4.0).metric(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([[0.2500, 0.2500]])
    """

    name = "regression"

    def __init__(self, covariance: float | Tensor | None = None) -> None:
        self._scale = None if covariance is None else _root(torch.as_tensor(covariance, dtype=torch.float64).detach())

    def check(self, outputs: Tensor) -> None:
        """Outputs are (n, ...), with as many values as the covariance has.

        Raises:
            ShapeError: They are not.
        """
        c = math.prod(outputs.shape[1:])
        if self._scale is not None and self._scale.ndim and len(self._scale) != c:
            raise ShapeError(
                f"variant '{self.name}' has a covariance of {len(self._scale)} values, and the outputs have shape "
                f"{tuple(outputs.shape)}: {c} for each example"
            )

    def n_output(self, outputs: Tensor) -> int:
        """Number of values predicted."""
        return math.prod(outputs.shape[1:])

    def n_directions(self, outputs: Tensor, targets: Any = None) -> int:
        """One direction for each value predicted."""
        return math.prod(outputs.shape[1:])

    def directions(self, outputs: Tensor, targets: Any, chosen: slice) -> Tensor:
        """Columns of C^-T for S = C C^T, the same for every example, shape (k, *outputs)."""
        units = torch.eye(math.prod(outputs.shape[1:]), dtype=outputs.dtype, device=outputs.device)[chosen]
        rows = self._whitened_back(units)
        return rows.view(len(rows), 1, *outputs.shape[1:]).expand(-1, len(outputs), *outputs.shape[1:]).contiguous()

    def metric(self, outputs: Tensor, u: Tensor, targets: Any = None) -> Tensor:
        """S^-1 u, of the outputs' shape."""
        return self._whitened_back(self._whitened(u.reshape(len(u), -1))).view_as(u)

    def sample(self, outputs: Tensor, uniform: Tensor) -> Tensor:
        """Values f + C z with z standard normal."""
        z = torch.special.ndtri(uniform).to(outputs.dtype).reshape(len(outputs), -1)
        return outputs + self._coloured(z).view_as(outputs)

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """S^-1 (y - f)."""
        if y.shape != outputs.shape:
            raise ShapeError(
                f"variant '{self.name}' expects targets of the outputs' shape {tuple(outputs.shape)}, got {tuple(y.shape)}"
            )
        return self.metric(outputs, y.to(outputs.dtype) - outputs)

    def _coloured(self, rows: Tensor) -> Tensor:
        """C z for rows z (k, c)."""
        scale = self._scale_like(rows)
        coloured: Tensor = rows * scale if scale.ndim < 2 else rows @ scale.T
        return coloured

    def _whitened(self, rows: Tensor) -> Tensor:
        """C^-1 u for rows u (k, c)."""
        scale = self._scale_like(rows)
        solved: Tensor = rows / scale if scale.ndim < 2 else torch.linalg.solve_triangular(scale, rows.T, upper=False).T
        return solved

    def _whitened_back(self, rows: Tensor) -> Tensor:
        """C^-T u for rows u (k, c)."""
        scale = self._scale_like(rows)
        solved: Tensor = (
            rows / scale if scale.ndim < 2 else torch.linalg.solve_triangular(scale.T, rows.T, upper=True).T
        )
        return solved

    def _scale_like(self, rows: Tensor) -> Tensor:
        return rows.new_ones(()) if self._scale is None else self._scale.to(rows)


def _root(covariance: Tensor) -> Tensor:
    """C with C C^T = S: lower triangular of a matrix, else the standard deviations."""
    if covariance.ndim > 2 or (covariance.ndim == 2 and covariance.shape[0] != covariance.shape[1]):
        raise ValueError(
            f"covariance is a number, (c,) variances or a (c, c) matrix; got shape {tuple(covariance.shape)}"
        )
    if covariance.ndim < 2:
        if not (covariance.isfinite() & (covariance > 0)).all():
            raise ValueError(f"variances are positive and finite, got {covariance.min().item()} among them")
        return covariance.sqrt()
    if not covariance.isfinite().all() or not torch.allclose(covariance, covariance.T):
        raise ValueError("a covariance matrix is finite and symmetric, and this one is not")
    root, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        smallest = torch.linalg.eigvalsh(covariance)[0].item()
        raise ValueError(f"a covariance matrix is positive definite, and this one has the eigenvalue {smallest:.3g}")
    lower: Tensor = root
    return lower
