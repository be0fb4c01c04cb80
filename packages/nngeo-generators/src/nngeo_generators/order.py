"""Order: whether row i of what a module returned belongs to example i, in models that move rows by what the data say.

Sorting by length and routing to experts may leave the examples of the first batch, which is examined, where they are, and
move those of a later one. Two backward passes that differ in one weight for each example show it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from nngeo_generators.graph import nodes

__all__ = ["has_moved", "may_move_rows", "tagged"]

MOVING = ("Flip", "Gather", "Index", "MaskedS", "Put", "Roll", "Scatter", "Sort", "Take", "Topk")
"""How the names of graph nodes begin that may move rows."""

CUTTING = ("Cat", "Select", "Slice", "Split", "Stack", "Unbind", "UnsafeSplit")
"""Those that may when they work along the first axis."""


def may_move_rows(outputs: Tensor) -> bool:
    """Whether the graph of some outputs has an operation that takes rows by index, or one that autograd does not know."""
    return any(
        node.name().startswith(MOVING) or isinstance(node, BackwardCFunction) or _cuts_first_axis(node)
        for node in nodes(outputs)
    )


def _cuts_first_axis(node: Node) -> bool:
    """Whether a node takes rows apart, or puts them together."""
    return node.name().startswith(CUTTING) and getattr(node, "_saved_dim", None) == 0


def tagged(outputs: Tensor) -> Tensor:
    """A random direction, and the same one with a weight for each example: shape (2, n, ...)."""
    source = torch.Generator().manual_seed(0)
    direction = torch.randn(outputs.shape, generator=source, dtype=torch.float64, device="cpu").to(outputs)
    return torch.stack([direction, direction * _weights(outputs, 0)])


def has_moved(gradients: Tensor, axes: Iterable[int]) -> bool:
    """Whether rows of a module's output lie elsewhere than their examples, whichever of some axes that is.

    Args:
        gradients: The derivatives of the directions of `tagged` with respect to it, shape (2, *output shape).
        axes: Where the examples may be in the output.
    """
    plain, weighted = gradients
    limit = torch.finfo(plain.dtype).eps ** 0.5 * weighted.norm()
    return all(bool((weighted - plain * _weights(plain, axis)).norm() > limit) for axis in axes)


def _weights(like: Tensor, axis: int) -> Tensor:
    """A number between 1 and 2 for each place on an axis, the same each time."""
    source = torch.Generator().manual_seed(1)
    weights = 1 + torch.rand(like.shape[axis], generator=source, dtype=torch.float64, device="cpu")
    return weights.to(like).view(*[-1 if k == axis else 1 for k in range(like.ndim)])
