"""The spectral density of a symmetric matrix, by stochastic Lanczos quadrature."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nngeo_core.linear_algebra.lanczos import Krylov
from nngeo_core.linear_algebra.linear_map import Rows
from nngeo_core.linear_algebra.stochastic import Estimate, random_signs

__all__ = ["SpectralDensity", "spectral_density"]


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """The distribution of the d eigenvalues, as that of a few numbers for each of some random vectors z.

    The sum of f(nodes) * weights over a row is z^T f(M) z / d, exactly for polynomials f of degree 2 m - 1.

    Attributes:
        nodes: Shape (samples, m), ascending in each row.
        weights: Shape (samples, m), each row adding up to 1.
        size: d.
    """

    nodes: Tensor
    weights: Tensor
    size: int

    def trace_of(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """The trace of f(M), such as a log-determinant, with its standard error.

        Args:
            function: f of each entry of a tensor.
        """
        samples = self.size * (function(self.nodes) * self.weights).sum(1)
        return Estimate(samples.mean(), samples.std() / math.sqrt(len(samples)))

    def density(self, points: Tensor, width: float) -> Tensor:
        """The density at some points, each node widened to a normal distribution; its integral is 1.

        Args:
            points: Of any shape.
            width: Standard deviation.
        """
        distance = (points.unsqueeze(-1) - self.nodes.flatten()) / width
        heights = (-distance.square() / 2).exp() / (width * math.sqrt(2 * math.pi))
        return (heights * self.weights.flatten()).sum(-1) / len(self.nodes)


def spectral_density(
    apply: Rows,
    size: int,
    samples: int,
    steps: int,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> SpectralDensity:
    """Stochastic Lanczos quadrature with random signs (Ubaru, Chen & Saad 2017; Ghorbani, Krishnan & Xiao 2019).

    Args:
        apply: M v for each row v of a tensor (k, d), M symmetric.
        size: d.
        samples: How many random vectors, 2 at least; the error falls with the root of their number.
        steps: How many products with each: m, at most d.
        dtype: That of the products.
        device: Where they are taken.
        generator: Draws the vectors.

    Raises:
        ValueError: There are fewer than two samples or no steps.
        NonFiniteError: A product has a NaN or an infinity.

    Example:
        >>> cpu = torch.device("cpu")
        >>> found = spectral_density(lambda rows: 2 * rows, 4, 2, 3, torch.float64, cpu, torch.Generator())
        >>> found.trace_of(torch.log2).value
        tensor(4., dtype=torch.float64)
    """
    if samples < 2 or steps < 1:
        raise ValueError(f"samples is at least 2 and steps at least 1, got {samples} and {steps}")
    nodes, weights = [], []
    for _ in range(samples):
        krylov = Krylov(apply, random_signs((1, size), dtype, device, generator), generator)
        for _ in range(min(steps, size)):
            krylov.extend()
        values, rows, _ = krylov.ritz()
        nodes.append(values)
        weights.append(rows[:, 0].square())
    return SpectralDensity(torch.stack(nodes), torch.stack(weights), size)
