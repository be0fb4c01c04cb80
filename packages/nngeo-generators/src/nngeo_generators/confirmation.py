"""Confirmation: a plain pass over some examples by themselves agrees with what a pass over more of them has shown of these.

The pass over more is one that a computation needs anyway, so that it takes fewer passes than an examination: one forward
and one backward. It says yes or no; an examination says what is wrong, and mends what can be mended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.sweep.examples import Batch
from nngeo_core.sweep.generator import Generator
from nngeo_generators.examination import by_themselves, plain_gradient, run_unwritten
from nngeo_generators.graph import coarsest, keeps_precision
from nngeo_generators.joining import Part
from nngeo_generators.matrix_free import leaves
from nngeo_generators.network import Network
from nngeo_generators.trust import differ, differing_layers

__all__ = ["PlainPass", "Waiting", "are_outputs"]


@dataclass(frozen=True)
class Waiting:
    """A batch whose check waits for the first pass that has its examples.

    Attributes:
        part: The batch.
        state: That of the model.
        some: The examples that are looked at.
        alone: The outputs of the last example alone.
    """

    part: Part
    state: object
    some: slice
    alone: Tensor


def are_outputs(directions: Tensor) -> bool:
    """Whether output directions (c, n, ...) are the outputs themselves, one by one."""
    c, n = directions.shape[:2]
    flat = directions.reshape(c, n, -1)
    return flat.shape[2] == c and torch.equal(flat, torch.eye(c).to(flat)[:, None].expand(c, n, c))


class PlainPass:
    """A forward pass over some examples of a batch by themselves, without hooks, which a pass over all is compared with.

    Args:
        generator: Knows the model and its layers.
        network: Maps a batch to the outputs.
        batch: All examples.
        some: Which of them it is about.
    """

    def __init__(self, generator: Generator, network: Network, batch: Batch, some: slice) -> None:
        self.some, self.layers = some, generator.layer_collection
        self.parameters = leaves(generator.model, self.layers)
        with torch.enable_grad():
            self.graph = run_unwritten(partial(network.with_parameters, self.parameters), by_themselves(batch, some))

    def confirms(self, outputs: Tensor, jacobians: JacobianBatch, alone: Tensor) -> bool:
        """Whether the examples have these outputs and Jacobians; goes backward, and so is asked once.

        Equal outputs show that examples do not mix and that nothing is random; sums w J equal to the plain gradient, with a
        weight for each example and output, that every layer's Jacobian is exact and the examples are in their order.

        Args:
            outputs: Those of all examples.
            jacobians: Those of all examples, for the outputs as directions.
            alone: The outputs of the last of these examples alone.
        """
        among_all, found = outputs[self.some], _of_examples(jacobians, self.some)
        computed, by_themselves = coarsest(self.graph), self.graph.detach()
        if found is None or differ(by_themselves, among_all, computed) or differ(alone, among_all[-1:], computed):
            return False
        source = torch.Generator().manual_seed(0)
        weights = torch.randn(jacobians.total_directions, len(among_all), generator=source, dtype=jacobians.dtype)
        weights = weights.to(jacobians.device)
        own = self.layers if keeps_precision(self.graph) else ()
        plain = plain_gradient(self.graph, self.parameters, weights.T.reshape(among_all.shape))
        return not differing_layers(found, weights, plain, self.layers, computed, own)


def _of_examples(batch: JacobianBatch, some: slice) -> dict[str, LayerJacobian] | None:
    """The layers' Jacobians of some examples, or None if one of them does not say how."""
    found: Mapping[str, LayerJacobian | None] = {name: part.of_examples(some) for name, part in batch.layers.items()}
    known = {name: part for name, part in found.items() if part is not None}
    return known if len(known) == len(found) else None
