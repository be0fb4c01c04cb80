"""From vectors to figures: relative differences, cosines and residuals, in double precision."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nngeo_core.linear_algebra.norms import euclidean_norm

__all__ = ["products_agree", "relative_difference", "solutions_agree"]


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
    forms = relative_difference(_dots(v, approximate, places), _dots(v, exact, places))
    return torch.stack([forms, _cosines(exact, approximate, places)])


def solutions_agree(v: Tensor, found: Tensor, places: Sequence[slice]) -> Tensor:
    """How well v' = (A + r I)^-1 (F + r I) v agrees with v, by places of the flat vectors.

    Args:
        v: Shape (d,).
        found: v', shape (d,).
        places: One for the whole, or those of the layers.

    Returns:
        Shape (2, places), float64: the cosine of v' and v, and |v - v'| / |v|.
    """
    residuals = _quotient(_norms(v.double() - found.double(), places), _norms(v, places))
    return torch.stack([_cosines(v, found, places), residuals])


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    """0 where the numerator is zero, NaN where the denominator alone is."""
    quotient = torch.where(below == 0, torch.nan, above / torch.where(below == 0, 1.0, below))
    return torch.where(above == 0, 0.0, quotient)


def _cosines(a: Tensor, b: Tensor, places: Sequence[slice]) -> Tensor:
    """1 of two zeros, 0 of one."""
    lengths, others = _norms(a, places), _norms(b, places)
    units = [
        _unit(a[place], length) @ _unit(b[place], other)
        for place, length, other in zip(places, lengths, others, strict=True)
    ]
    return torch.where((lengths == 0) & (others == 0), 1.0, torch.stack(units).clamp(-1, 1))


def _unit(a: Tensor, length: Tensor) -> Tensor:
    return a.double() / length if length > 0 else torch.zeros_like(a, dtype=torch.float64)


def _dots(a: Tensor, b: Tensor, places: Sequence[slice]) -> Tensor:
    return torch.stack([a[place].double() @ b[place].double() for place in places])


def _norms(a: Tensor, places: Sequence[slice]) -> Tensor:
    return torch.stack([euclidean_norm(a[place].double()) for place in places])
