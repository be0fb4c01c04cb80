"""Trace and diagonal of a matrix known by its products, estimated from random signs, with standard errors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nngeo_core.linear_algebra.linear_map import Rows

__all__ = ["Estimate", "estimate_diagonal", "estimate_trace", "random_signs"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean of independent unbiased samples.

    Attributes:
        value: The mean.
        standard_error: That of the mean, estimated from the samples, of the value's shape.
    """

    value: Tensor
    standard_error: Tensor


def random_signs(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Tensor:
    """Independent numbers, 1 or -1 with equal probability."""
    bits = torch.randint(0, 2, shape, generator=generator, device=generator.device)
    return (2 * bits - 1).to(device=device, dtype=dtype)


def estimate_trace(
    apply: Rows, size: int, samples: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Estimate:
    """The mean of z^T M z over random signs z (Hutchinson 1990), 0-dimensional.

    Args:
        apply: M v for each row v of a tensor (k, d).
        size: d.
        samples: How many z, two at least; each takes one product.
        dtype: That of the products.
        device: Where they are taken.
        generator: Draws the signs.

    Raises:
        ValueError: There are fewer than two samples.

    Example:
        >>> cpu = torch.device("cpu")
        >>> found = estimate_trace(lambda rows: 2 * rows, 3, 4, torch.float32, cpu, torch.Generator())
        >>> found.value, found.standard_error
        (tensor(6.), tensor(0.))
    """

    def quadratic_form(z: Tensor) -> Tensor:
        return (z * apply(z)).sum()

    return _mean(quadratic_form, size, samples, dtype, device, generator)


def estimate_diagonal(
    apply: Rows, size: int, samples: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Estimate:
    """The mean of z * (M z) over random signs z (Bekas, Kokiopoulou & Saad 2007), shape (d,).

    Takes and raises what `estimate_trace` does. The error of an entry is that of its row's other entries.
    """
    return _mean(lambda z: (z * apply(z))[0], size, samples, dtype, device, generator)


def _mean(
    sample: Rows, size: int, samples: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Estimate:
    """Mean and standard error in one pass, without cancellation (Welford 1962)."""
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
        raise ValueError(
            f"samples is how many random vectors to take, 2 at least for a standard error; got {samples!r}"
        )
    mean = squares = torch.zeros((), dtype=dtype, device=device)
    for count in range(1, samples + 1):
        found = sample(random_signs((1, size), dtype, device, generator))
        change = found - mean
        mean = mean + change / count
        squares = squares + change * (found - mean)
    return Estimate(mean, (squares / (samples * (samples - 1))).sqrt())
