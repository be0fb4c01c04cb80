"""Confirmation: a plain pass over some examples by themselves agrees with what a pass over more of them has shown of these.

The pass over more is one that a computation needs anyway, so that it takes fewer passes than an examination: one forward
and one backward. It says yes or no; an examination says what is wrong, and mends what can be mended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.sweep.examples import Batch, select_examples
from nngeo_core.sweep.generator import Generator
from nngeo_generators.capture import Capture
from nngeo_generators.chunking import Graph, choose_chunks
from nngeo_generators.examination import by_themselves, plain_gradient, run_unwritten
from nngeo_generators.graph import coarsest, keeps_precision
from nngeo_generators.joining import Part, kept
from nngeo_generators.matrix_free import leaves
from nngeo_generators.network import Network
from nngeo_generators.plan import Use
from nngeo_generators.rules.generic import GenericRule
from nngeo_generators.trust import differ, differing_layers

__all__ = ["PlainPass", "Waiting", "are_outputs", "scattered", "what_waits"]


@dataclass(frozen=True)
class Waiting:
    """A batch whose check waits for the first pass that has its examples.

    Attributes:
        part: The batch, in memory of its own.
        state: That of the model.
        some: The numbers of the examples that are looked at.
        alone: The outputs of the last example of the batch alone.
        most: How many examples that pass may have, if the plain one is to fit the memory budget beside it.
    """

    part: Part
    state: object
    some: Tensor
    alone: Tensor
    most: int


def scattered(n: int, count: int) -> Tensor:
    """The numbers of some of the last 2 `count` of n examples, one of each pair of neighbours, in no regular order.

    Those whose place has an even number of binary ones (Thue and Morse): of 16 places they have each remainder by 8, 4 and 2
    equally often, so that examples are seen of every kind where kinds alternate, and none with the neighbours that it has
    among all.
    """
    return torch.tensor(
        [n - 2 * count + place for place in range(2 * count) if place.bit_count() % 2 == 0], device="cpu"
    )


def what_waits(
    generator: Generator,
    part: Part,
    state: object,
    measured: tuple[Sequence[Use], Capture, Graph],
    memory_budget: int,
    examined: int,
) -> Waiting | None:
    """What waits, if a pass over a batch and what it is joined to may show what an examination would.

    Args:
        generator: Knows the directions.
        part: The batch.
        state: That of the model.
        measured: A plan, the last example of the batch alone by that, and its graph.
        memory_budget: In bytes.
        examined: How many examples an examination would take.
    """
    plan, capture, graph = measured
    n, one, alone = len(part.numbers), capture.footprint, capture.outputs.detach()
    if n < 2 * examined or any(isinstance(use.rule, GenericRule) for use in plan):
        return None  # an examination may find something better than a generic rule
    last = select_examples(part.batch, slice(n - 1, n))
    total, negative = generator.count_directions(alone, last)
    beside = examined * graph.total  # of the plain pass
    most = choose_chunks(one, total, generator.device, memory_budget - beside, graph).joined
    if not total or negative or n > most or not are_outputs(generator.directions(alone, last, slice(0, total))):
        return None
    return Waiting(kept(part), state, scattered(n, examined), alone, most)


def are_outputs(directions: Tensor) -> bool:
    """Whether output directions (c, n, ...) are the outputs themselves, one by one; of outputs (n,), one number each."""
    c, n = directions.shape[:2]
    flat = directions.unsqueeze(-1).flatten(2)
    identity = torch.eye(c, dtype=flat.dtype, device=flat.device)
    return flat.shape[2] == c and torch.equal(flat, identity[:, None].expand(c, n, c))


class PlainPass:
    """A forward pass over some examples of a batch by themselves, without hooks, which a pass over all is compared with.

    Args:
        generator: Knows the model and its layers.
        network: Maps a batch to the outputs.
        batch: All examples.
        some: The numbers of those that it is about.
    """

    def __init__(self, generator: Generator, network: Network, batch: Batch, some: Tensor) -> None:
        self.some, self.layers = some, generator.layer_collection
        self.parameters = leaves(generator.model, self.layers)
        with torch.enable_grad():
            self.graph = run_unwritten(partial(network.with_parameters, self.parameters), by_themselves(batch, some))

    def confirms(self, outputs: Tensor, jacobians: JacobianBatch) -> bool:
        """Whether the examples have these outputs and Jacobians; goes backward, and so is asked once.

        Equal outputs show that these examples do not mix with others and that nothing about them is random; sums w J equal to
        the plain gradient, with a weight for each example and output, that every layer's Jacobian is exact and the examples
        are in their order.

        Args:
            outputs: Those of all examples.
            jacobians: Those of all examples, for the outputs as directions.
        """
        among_all, found = outputs[self.some], _of_examples(jacobians, self.some)
        computed = coarsest(self.graph)
        if found is None or differ(self.graph.detach(), among_all, computed):
            return False
        source = torch.Generator().manual_seed(0)
        weights = torch.randn(
            jacobians.total_directions, len(among_all), generator=source, dtype=jacobians.dtype, device="cpu"
        )
        weights = weights.to(jacobians.device)
        own = self.layers if keeps_precision(self.graph) else ()
        plain = plain_gradient(self.graph, self.parameters, weights.T.reshape(among_all.shape))
        return not differing_layers(found, weights, plain, self.layers, computed, own)


def _of_examples(batch: JacobianBatch, some: Tensor) -> dict[str, LayerJacobian] | None:
    """The layers' Jacobians of some examples, or None if one of them does not say how."""
    found: Mapping[str, LayerJacobian | None] = {name: part.of_examples(some) for name, part in batch.layers.items()}
    known = {name: part for name, part in found.items() if part is not None}
    return known if len(known) == len(found) else None
