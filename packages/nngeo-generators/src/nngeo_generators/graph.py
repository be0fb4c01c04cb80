"""What the graph behind some outputs tells of how they were computed."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

__all__ = ["coarsest", "keeps_precision", "nodes"]


def nodes(outputs: Tensor) -> Iterator[Node]:
    """All nodes of the graph of some outputs."""
    seen: set[Node] = set()
    waiting = [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            yield node
            seen.add(node)
            waiting += [child for child, _ in node.next_functions]


def keeps_precision(outputs: Tensor) -> bool:
    """Whether the graph of some outputs computes in one dtype throughout, as far as autograd knows."""
    return not any(node.name().startswith("ToCopy") or isinstance(node, BackwardCFunction) for node in nodes(outputs))


def coarsest(outputs: Tensor) -> torch.dtype:
    """The dtype with the fewest digits in the graph of some outputs: a model may cast to half precision inside (autocast)."""
    found = outputs.dtype
    for node in nodes(outputs):
        for dtype in (part.dtype for part in getattr(node, "_input_metadata", ())):
            if dtype.is_floating_point and torch.finfo(dtype).eps > torch.finfo(found).eps:
                found = dtype
    return found
