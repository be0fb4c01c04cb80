"""Kernels of examples alone, applied to every output."""

from collections.abc import Callable
from typing import Literal

import torch

from nngeo_core.errors import ShapeError
from nngeo_core.matrices.fmat import FMat
from nngeo_core.vectors.fvector import FVector

__all__ = ["check_cross", "check_outputs", "over_outputs"]


def over_outputs(kernel: FMat, u: FVector, act: Callable[[FVector], FVector]) -> FVector:
    """What `act` makes of u (c, n), output by output where the kernel is one of examples alone (such as "trace")."""
    if kernel.size()[0] == 1 and u.size()[0] > 1:
        return FVector(torch.cat([act(FVector(row.unsqueeze(0))).vector_repr for row in u.vector_repr]))
    return act(u)


def check_outputs(kernel: FMat, vector: FVector, name: str) -> None:
    """Raise unless a vector has one value for each output and example of the kernel, or for each of its examples.

    Raises:
        TypeError: It is no FVector.
        ShapeError: Its shape does not fit.
    """
    if not isinstance(vector, FVector):
        raise TypeError(
            f"{name} are an FVector (c, n), got {type(vector).__name__}; FVector(values.T) makes one of (n, c)"
        )
    c, n = kernel.size()[:2]
    given = tuple(vector.size())
    if given[1] != n or c not in (1, given[0]):
        raise ShapeError(
            f"{name} have shape {given}, expected {(c, n)} as the kernel; an FVector has the outputs first"
        )


def check_cross(kernel: FMat, cross: FMat, side: Literal["rows", "columns"] = "columns") -> None:
    """Raise unless a cross kernel has the outputs and examples of a kernel on one side, and entries that mean the same.

    Raises:
        ShapeError: It has others.
        TypeError: One is of all pairs of outputs, and the other of equal ones alone.
    """
    given, expected = cross.size()[:2] if side == "rows" else cross.size()[2:], kernel.size()[:2]
    if given != expected:
        raise ShapeError(
            f"the {side} of the cross kernel are {given} outputs and examples, and the kernel has {expected}; "
            f"compute both from the same examples and as '{kernel.name}'"
        )
    if expected[0] > 1 and _pairing(cross) != _pairing(kernel):
        raise TypeError(
            f"the cross kernel is '{cross.name}' and the kernel '{kernel.name}', whose entries are not of the same outputs; "
            f"compute both as '{kernel.name}'"
        )


def _pairing(kernel: FMat) -> object:
    """Which outputs meet in a kernel: in one that says nothing all of them."""
    return getattr(kernel, "pairing", "all")
