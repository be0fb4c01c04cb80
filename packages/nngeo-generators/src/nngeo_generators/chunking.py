"""How many examples and output directions go through the model at once: bytes counted on one example."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from nngeo_core.jacobians.contraction import blocks

__all__ = [
    "Chunks",
    "DEFAULT_MEMORY_BUDGET",
    "Footprint",
    "Graph",
    "IN_FLIGHT",
    "choose_chunks",
    "choose_part",
    "keep_freed_memory",
    "measure",
    "measure_graph",
    "signed_blocks",
]

T = TypeVar("T")

DEFAULT_MEMORY_BUDGET = 2**30
"""Bytes that captured inputs and the gradients of a backward pass, or the graphs of a product, may take together.

What a contraction forms on the way lies in blocks of `BLOCK_BYTES`, whatever the budget.
"""

IN_FLIGHT = 2
"""Gradients of a backward pass that no layer keeps: what an operation gets and gives, as large as the largest tensor."""

LARGEST_TENSOR = {"cpu": 12 * 2**20}
"""Bytes of the largest tensor of a backward pass, by device type: beyond, a CPU spends its time in page faults."""

LARGEST_GRAPH = 24 * 2**20
"""Bytes of a graph on a CPU that stay in its last cache, and whose pages need not be fetched anew."""

WORTH_CUTTING = 2**20
"""Bytes that the largest tensor of a graph keeps when that is cut: small products would cost more than it saves."""

LARGEST_BLOCK = 31 * 2**20
"""Bytes of a block whose release glibc heeds: it ignores those of 32 MiB and more."""


def keep_freed_memory(device: torch.device, memory_budget: int) -> None:
    """Have the C library keep what one chunk frees for the next, instead of fetching fresh pages for every chunk.

    glibc returns freed memory to the system beyond twice the largest block that it saw freed. A block of half the budget, 31
    MiB at most, sets that bound before the first chunk; it is never written to, and so takes no memory itself.
    """
    if device.type in LARGEST_TENSOR:
        torch.empty(min(LARGEST_BLOCK, memory_budget // 2), dtype=torch.uint8, device="cpu")


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
class Graph:
    """Bytes of the tensors that autograd keeps for the backward pass of one example, and of the largest of them."""

    total: int
    largest: int


@dataclass(frozen=True)
class Chunks:
    """How many examples, and how many directions of those, are sent backward at once.

    Attributes:
        examples: Into which a batch is cut.
        directions: Of each example.
        joined: Up to which smaller batches are put together.
    """

    examples: int
    directions: int
    joined: int = 1


def measure_graph(run: Callable[[], T], known: Iterable[Tensor]) -> tuple[T, Graph]:
    """What `run` returns, and what autograd keeps for a backward pass, the known tensors (parameters) left out.

    A node that keeps what it returned would be kept by it in turn, through autograd where no garbage collector looks. So what
    is kept is cut from the graph once `run` has ended, which may itself have differentiated twice.
    """
    sizes: dict[int, int] = {}
    kept: list[list[Tensor]] = []

    def keep(tensor: Tensor) -> list[Tensor]:
        storage = tensor.untyped_storage()  # of which an example may be only a part, and several tensors may be views
        sizes[storage.data_ptr()] = min(storage.nbytes(), sizes.get(storage.data_ptr(), 0) + tensor.nbytes)
        kept.append([tensor])
        return kept[-1]

    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held[0]):
            result = run()
    finally:
        for held in kept:
            held[0] = held[0].detach()
    for tensor in known:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return result, Graph(sum(sizes.values()), max(sizes.values(), default=0))


def measure(calls: Iterable[tuple[int, int]], beside: int = 0) -> Footprint:
    """The footprint of calls given as (bytes of the input, bytes of the output gradient), and of gradients beside those."""
    pairs = list(calls) or [(0, 0)]
    inputs, gradients = zip(*pairs, strict=True)
    return Footprint(sum(inputs), sum(gradients) + beside, max(inputs), max(gradients))


def _largest_tensor(device: torch.device, memory_budget: int) -> int:
    """Bytes that one tensor of a pass should take at most."""
    return min(memory_budget, LARGEST_TENSOR.get(device.type, memory_budget))


def choose_part(one: Graph, device: torch.device, memory_budget: int, keeps_graph: bool) -> int:
    """How many examples of a product are run at once.

    Three graphs fit the budget, and three of the largest tensor the cache: the tensor, its tangent, and what is computed from
    both. On a CPU a graph that is kept for a backward pass is cut further, as long as its tensors stay large.

    Args:
        one: The graph of one example.
        device: Where the model is.
        memory_budget: In bytes.
        keeps_graph: Whether there is a backward pass.
    """
    largest = _largest_tensor(device, memory_budget)
    most = min(largest // max(1, 3 * one.largest), memory_budget // max(1, 3 * one.total))
    if keeps_graph and device.type in LARGEST_TENSOR:
        most = min(most, max(LARGEST_GRAPH // max(1, one.total), WORTH_CUTTING // max(1, one.largest)))
    return max(1, most)


def choose_chunks(
    one: Footprint, directions: int, device: torch.device, memory_budget: int, graph: Graph | None = None
) -> Chunks:
    """As many examples with all their directions as fit; if not even one does, one example with some directions.

    Whole examples come first, because a second slice of directions would cut the inputs' patches and form their products
    once more. When the graph is known, the gradients that a backward pass holds on its way from layer to layer count too,
    and batches are joined only as far as their graph fits the budget as well.
    """
    one_direction = one.gradients + (IN_FLIGHT * graph.largest if graph else 0)
    most, each = _largest_tensor(device, memory_budget), one.inputs + directions * one_direction
    examples = min(most // max(1, one.largest_input, directions * one.largest_gradient), memory_budget // max(1, each))
    if examples >= 1:
        joined = min(examples, memory_budget // max(1, each + graph.total)) if graph else 1
        return Chunks(examples, directions, max(1, joined))
    fit = min(most // max(1, one.largest_gradient), (memory_budget - one.inputs) // max(1, one_direction))
    return Chunks(1, min(directions, max(1, fit)))


def signed_blocks(total: int, negative: int, most: int) -> Iterator[slice]:
    """Slices of all directions, none with both of those that enter with a plus and the last ones, with a minus sign."""
    positive = total - negative
    yield from blocks(positive, 1, most)
    for some in blocks(negative, 1, most):
        yield slice(positive + some.start, positive + some.stop)
