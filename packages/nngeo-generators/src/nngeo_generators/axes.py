"""Where the examples are in what a module is given and returns: found by comparing with a pass over one example alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["example_axes", "example_axis"]


def example_axis(alone: Sequence[int], together: Sequence[int]) -> int | None:
    """The axis that has length one for one example and length n for n; None if the shapes are the same.

    Args:
        alone: A tensor's shape in a pass over one example.
        together: Its shape in a pass over n > 1.

    Raises:
        ValueError: The shapes differ in another way.

    Example:
        >>> example_axis((5, 1, 3), (5, 4, 3))
        1
    """
    differing = [k for k, lengths in enumerate(zip(alone, together, strict=False)) if lengths[0] != lengths[1]]
    if len(alone) != len(together) or len(differing) > 1 or any(alone[k] != 1 for k in differing):
        raise ValueError(f"it has shape {tuple(together)} for all examples and {tuple(alone)} for one of them alone")
    return differing[0] if differing else None


def example_axes(alone: Sequence[Any], together: Sequence[Any]) -> tuple[int | None, ...]:
    """For each argument of a call, the axis of the examples; None for one that they share.

    Args:
        alone: The arguments in a pass over one example.
        together: Those of the same call in a pass over n > 1.

    Raises:
        ValueError: An argument depends on the number of examples in another way.
    """
    if len(alone) != len(together):
        raise ValueError(f"it has {len(together)} arguments for all examples and {len(alone)} for one of them alone")
    return tuple(_axis(one, many) for one, many in zip(alone, together, strict=True))


def _axis(one: Any, many: Any) -> int | None:
    if isinstance(one, Tensor) and isinstance(many, Tensor):
        return example_axis(one.shape, many.shape)
    plain = isinstance(many, int | float | str | torch.dtype | None)
    if type(one) is not type(many) or (plain and one != many):
        raise ValueError(f"an argument is {many!r} for all examples and {one!r} for one of them alone")
    return None
