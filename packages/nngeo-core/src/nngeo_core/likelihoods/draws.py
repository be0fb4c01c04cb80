"""Draws: random numbers that belong to examples, so that every pass over the data sees the same ones.

A number is a hash of a seed, the example's content and a counter (SplitMix64; Steele, Lea & Flood 2014). Nothing is stored,
and neither the order nor the batches in which examples come matter.
"""

import math

import torch
from torch import Tensor

__all__ = ["fresh_seed", "uniform"]

_STEP, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def fresh_seed(generator: torch.Generator | None = None) -> int:
    """A seed drawn from a generator; without one, from the operating system."""
    source = torch.Generator() if generator is None else generator
    if generator is None:
        source.seed()
    return int(torch.randint(2**62, (), generator=source, device=source.device))


def uniform(digests: Tensor, seed: int, shape: tuple[int, ...], first: int = 0, stream: int = 0) -> Tensor:
    """Uniform numbers in (0, 1), float64.

    Args:
        digests: A number for each example, int64, shape (n,).
        seed: Chooses one of many such streams.
        shape: How many for each example.
        first: How many of an example's numbers to skip.
        stream: Chooses one of independent streams of one seed.

    Returns:
        Shape (n, *shape).
    """
    count = torch.arange(first + 1, first + 1 + math.prod(shape), device=digests.device)
    chosen = _mixed(torch.tensor(seed, device=digests.device))
    if stream:
        chosen = _mixed(chosen + torch.tensor(stream, device=digests.device) * _STEP)
    streams = _mixed(digests ^ chosen)
    bits = _mixed(streams.unsqueeze(1) + count * _STEP)
    return ((_shifted(bits, 11).double() + 0.5) * 2.0**-53).view(len(digests), *shape)


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """A shift to the right that fills with zeros."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
