"""Backward passes for several directions at once, or one after the other where a model's own backward forbids that."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

__all__ = ["pull_back_each"]


def pull_back_each(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor] | Sequence[GradientEdge],
    directions: Sequence[Tensor],
    keep_graph: bool = False,
    batched: bool = True,
) -> list[Tensor | None]:
    """The derivatives of c directions of the outputs, shape (c, ...) for each input; None for one that has no part in them.

    Args:
        outputs: Tensors with a graph.
        inputs: Tensors or edges of that graph.
        directions: The output gradients of each output, shape (c, ...).
        keep_graph: Whether more directions will follow.
        batched: Whether autograd takes all directions in one pass, under vmap, which not every custom function bears.

    Raises:
        RuntimeError: The graph cannot be differentiated, or not so.
    """
    c = len(directions[0])
    if c > 1 and not batched:
        last = c - 1
        found = [
            pull_back_each(outputs, inputs, [u[k : k + 1] for u in directions], keep_graph or k < last)
            for k in range(c)
        ]
        return [_joined(parts) for parts in zip(*found, strict=True)]
    given = directions if c > 1 else [u[0] for u in directions]
    pulled = torch.autograd.grad(
        outputs, inputs, given, retain_graph=keep_graph, is_grads_batched=c > 1, allow_unused=True
    )
    return [part if part is None or c > 1 else part.unsqueeze(0) for part in pulled]


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One tensor of what was found direction by direction."""
    some = next((part for part in parts if part is not None), None)
    if some is None:
        return None
    return torch.cat([torch.zeros_like(some) if part is None else part for part in parts])
