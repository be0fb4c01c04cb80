"""From vectors to figures: relative differences, cosines and residuals, in double precision."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["products_agree", "relative_difference", "solutions_agree"]

_PIECE = 2**16
"""Coordinates that are taken together: as float64, 0.5 MiB of each vector."""


def relative_difference(approximate: Tensor, exact: Tensor) -> Tensor:
    """(approximate - exact) / exact by element; 0 where both are zero, NaN where the exact value alone is.

    Example:
        >>> relative_difference(torch.tensor([3.0, 0.0, 1.0]), torch.tensor([2.0, 0.0, 0.0]))
        tensor([0.5000, 0.0000,    nan])
    """
    return _quotient(approximate - exact, exact)


def products_agree(v: Tensor, exact: Tensor, approximate: Tensor, places: Sequence[slice]) -> Tensor:
    """How well A v agrees with F v, by places of the flat vectors.

    Args:
        v: Shape (d,).
        exact: F v, shape (d,).
        approximate: A v, shape (d,).
        places: One for the whole, or those of the layers.

    Returns:
        Shape (2, places), float64: the relative difference of v^T A v and v^T F v, and the cosine of A v and F v.
    """
    grams = _grams([v, exact, approximate], places)
    forms = relative_difference(grams[:, 0, 2], grams[:, 0, 1])
    return torch.stack([forms, _cosines(grams, 1, 2)])


def solutions_agree(v: Tensor, found: Tensor, places: Sequence[slice]) -> Tensor:
    """How well v' = (A + r I)^-1 (F + r I) v agrees with v, by places of the flat vectors.

    Args:
        v: Shape (d,).
        found: v', shape (d,).
        places: One for the whole, or those of the layers.

    Returns:
        Shape (2, places), float64: the cosine of v' and v, and |v - v'| / |v|.
    """
    grams = _grams([v, found], places)
    return torch.stack([_cosines(grams, 0, 1), _quotient(grams[:, -1, -1].sqrt(), grams[:, 0, 0].sqrt())])


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    """0 where the numerator is zero, NaN where the denominator alone is."""
    quotient = torch.where(below == 0, torch.nan, above / torch.where(below == 0, 1.0, below))
    return torch.where(above == 0, 0.0, quotient)


def _cosines(grams: Tensor, one: int, other: int) -> Tensor:
    """1 of two zeros, 0 of one."""
    lengths, others = grams[:, one, one].sqrt(), grams[:, other, other].sqrt()
    cosines = grams[:, one, other] / torch.where((lengths > 0) & (others > 0), lengths * others, 1.0)
    return torch.where((lengths == 0) & (others == 0), 1.0, cosines.clamp(-1, 1))


def _grams(rows: Sequence[Tensor], places: Sequence[slice]) -> Tensor:
    """Inner products of vectors and, last, the difference of the last two, for each place; shape (places, k + 1, k + 1).

    Taken piece by piece, so that what is double is small.
    """
    grams = torch.zeros(len(places), len(rows) + 1, len(rows) + 1, dtype=torch.float64, device=rows[0].device)
    for gram, place in zip(grams, places, strict=True):
        for start in range(place.start, place.stop, _PIECE):
            pieces = [row[start : min(start + _PIECE, place.stop)].double() for row in rows]
            stacked = torch.stack([*pieces, pieces[-2] - pieces[-1]])
            gram += stacked @ stacked.T
    return grams
