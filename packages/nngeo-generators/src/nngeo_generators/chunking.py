"""How many examples and output directions go through the model at once: bytes counted on one example."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Chunks", "DEFAULT_MEMORY_BUDGET", "Footprint", "choose_chunks", "graph_bytes", "measure"]

DEFAULT_MEMORY_BUDGET = 2**30
"""Bytes that captured inputs and output gradients may take together."""

LARGEST_TENSOR = {"cpu": 12 * 2**20}
"""Bytes of the largest tensor of a backward pass, by device type: beyond, a CPU spends its time in page faults."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one example: the inputs captured, and the output gradients of one direction.

    Attributes:
        inputs: Of all calls.
        gradients: Of all calls.
        largest_input: Of the largest call.
        largest_gradient: Of the largest call.
    """

    inputs: int
    gradients: int
    largest_input: int
    largest_gradient: int


@dataclass(frozen=True)
class Chunks:
    """How many examples, and how many directions of those, are sent backward at once."""

    examples: int
    directions: int


def graph_bytes(run: Callable[[], object], known: Iterable[Tensor]) -> int:
    """Bytes of the tensors that autograd keeps for a backward pass through `run`, the known ones (parameters) left out."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values()) - sum(kept.get(tensor.untyped_storage().data_ptr(), 0) for tensor in known)


def measure(calls: Iterable[tuple[int, int]]) -> Footprint:
    """The footprint of calls given as (bytes of the input, bytes of the output gradient)."""
    pairs = list(calls) or [(0, 0)]
    inputs, gradients = zip(*pairs, strict=True)
    return Footprint(sum(inputs), sum(gradients), max(inputs), max(gradients))


def choose_chunks(one: Footprint, directions: int, device: torch.device, memory_budget: int) -> Chunks:
    """As many examples with all their directions as fit; if not even one does, one example with some directions.

    Whole examples come first, because a second slice of directions would cut the inputs' patches and form their products
    once more.
    """
    most = min(memory_budget, LARGEST_TENSOR.get(device.type, memory_budget))

    examples = min(
        most // max(1, one.largest_input, directions * one.largest_gradient),
        memory_budget // max(1, one.inputs + directions * one.gradients),
    )
    if examples >= 1:
        return Chunks(examples, directions)
    fit = min(most // max(1, one.largest_gradient), (memory_budget - one.inputs) // max(1, one.gradients))
    return Chunks(1, min(directions, max(1, fit)))
