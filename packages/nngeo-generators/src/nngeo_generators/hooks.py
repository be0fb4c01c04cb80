"""HooksGenerator: Jacobians from hooks on the modules and one backward pass to the outputs of all layers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as PythonGenerator
from typing import Any

import torch
from torch import Tensor, nn

from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.contraction import blocks
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.sweep.examples import Batch, count_examples, move_batch
from nngeo_core.sweep.generator import Generator
from nngeo_generators.capture import Capture
from nngeo_generators.chunking import choose_part, keep_freed_memory, signed_blocks
from nngeo_generators.confirmation import Waiting
from nngeo_generators.coverage import Coverage, coverage_of
from nngeo_generators.joining import Part, join
from nngeo_generators.knowledge import Knowledge
from nngeo_generators.linearize import Sound, all_ways
from nngeo_generators.matrix_free import fisher_form, fisher_product, pull_back, push_forward
from nngeo_generators.network import Network
from nngeo_generators.trust import checked_state

__all__ = ["HooksGenerator"]


class HooksGenerator(Generator):
    """The generator for any model: layers with a rule by their structure, all others the generic way, example by example.

    During a forward pass, a hook on each module notes what it was called with and the place in the graph where the
    derivative with respect to its output will arrive. One call of `torch.autograd.grad` to those places then yields, for
    any number of output directions, all that the layer rules need; no parameter gradient is ever formed.

    Takes the arguments of `Generator`. The first batch is compared with a plain gradient pass: a layer that differs goes
    the next way, and `UnsupportedLayerError` is raised if none is exact.

    Example:
        >>> from nngeo_core import GaussianLikelihood
        >>> generator = HooksGenerator(nn.Linear(2, 1), GaussianLikelihood())
        >>> generator.jacobian(torch.tensor([[3.0, 4.0]])).layers[""].to_dense()
        tensor([[[3., 4., 1.]]])
    """

    name = "hooks"

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood | str,
        function: Callable[..., Any] | None = None,
        layer_collection: LayerCollection | None = None,
        device: torch.device | str | None = None,
        n_output: int | None = None,
        memory_budget: int | None = None,
        check: str = "first-batch",
    ) -> None:
        super().__init__(model, likelihood, function, layer_collection, device, n_output, memory_budget, check)
        self._network = Network(self.model, self._outputs)
        self._known = Knowledge(self, self._network)
        self._ways = [*all_ways(), self._by_layers]
        self._sound: Sound = set()

    def coverage(self) -> Coverage:
        """How the derivative of each layer is obtained: as planned, and after the first batch, as that has shown to be exact.

        Example:
            >>> generator = HooksGenerator(nn.Linear(2, 1), "regression")
            >>> _ = generator.jacobian(torch.tensor([[3.0, 4.0]]))
            >>> print(generator.coverage())
            layer  module  way
            ''     ''      linear: read off its calls
        """
        known = self._known
        return coverage_of(known.plan, known.first_plan, self.layer_collection, examined=known.trusted)

    def _jacobian(self, batch: Batch, directions: slice | None) -> JacobianBatch:
        state = checked_state(self.model)
        batch = move_batch(batch, self.device)
        part = Part(batch, (0,) * count_examples(batch))
        if part.numbers:
            self._known.trust(part, state)
            self._known.forget_alone()  # whole examples at once: nothing to be cut
        capture = self._known.capture(part)
        total, negative = self.count_directions(capture.outputs.detach(), batch)
        return self._known.passes.jacobians(capture, batch, directions or slice(0, total), total, total - negative)

    def stream(self, batches: Iterable[Batch]) -> PythonGenerator[JacobianBatch, None, None]:
        """The Jacobians of all examples: whole examples with all their directions where those fit the memory budget."""
        keep_freed_memory(self.device, self._known.budget)
        waiting: list[Waiting] = []
        for part in join(self._arriving(batches, waiting)):
            confirmed = self._known.confirmed(part, waiting.pop()) if waiting else None
            if confirmed is not None:
                yield confirmed
                continue
            n, chunks = len(part.numbers), self._known.chunks_of(part)
            for examples in blocks(n, 1, chunks.examples):
                chunk = part.select(examples)
                capture = self._known.capture(chunk)
                total, negative = self.count_directions(capture.outputs.detach(), chunk.batch)
                for directions in signed_blocks(total, negative, chunks.directions):
                    yield self._known.passes.jacobians(capture, chunk.batch, directions, total, total - negative)

    def _arriving(self, batches: Iterable[Batch], waiting: list[Waiting]) -> Iterator[tuple[Part, int]]:
        """The batches that have examples, each with how many examples it may be joined to.

        They are trusted, but for a first one whose check can wait, and those like it: what waits is put on the list.
        """
        for place, (part, state) in enumerate(self._numbered(batches)):
            if waiting and part.shapes != waiting[0].part.shapes:
                first = waiting.pop()
                self._known.trust(first.part, first.state)
            if not waiting:
                waiting += self._known.trust(part, state, may_wait=place == 0)
            yield part, self._joined(self._known.chunks_of(part).joined)

    def _joined(self, most: int) -> int:
        """Up to how many examples batches are put together: not at all where each is checked by itself."""
        return 1 if self.check == "every-batch" else most

    def _numbered(self, batches: Iterable[Batch]) -> Iterator[tuple[Part, object]]:
        """The batches that have examples, on the model's device, with the state of the model."""
        state = checked_state(self.model)
        for number, received in enumerate(batches):
            batch = move_batch(received, self.device)
            n = count_examples(batch)
            if n:
                yield Part(batch, (number,) * n), state

    def _outputs(self, batch: Batch) -> Tensor:
        return self.outputs(batch, count_examples(batch))

    def _by_layers(
        self, network: Network, parameters: Mapping[str, Tensor], tangents: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Outputs with their graph, and J v from the layers' Jacobians: for a backward pass without derivative of its own."""
        v = torch.cat([tangent.flatten() for tangent in tangents])
        part = Part(batch, (0,) * count_examples(batch))
        self._known.trust(part, checked_state(self.model))
        chunks = self._known.chunks_of(part)
        rows = []
        for examples in blocks(len(part.numbers), 1, chunks.examples):
            capture = self._known.capture(part.select(examples))
            capture.raise_refused()
            c = capture.outputs[0].numel()
            identity = torch.eye(c, dtype=capture.outputs.dtype, device=capture.outputs.device)
            identity = identity[:, None].expand(-1, capture.n, -1)
            changes = [
                _change(self.layer_collection, capture, identity[some], v, keep_graph=some.stop < c)
                for some in blocks(c, 1, chunks.directions)
            ]
            rows.append(torch.cat(changes).T)
        outputs = network.with_parameters(parameters, batch)
        return outputs, torch.cat(rows).reshape(outputs.shape).to(outputs)

    def _inspected_parts(self, batches: Iterable[Batch], keeps_graph: bool) -> Iterator[tuple[Part, int]]:
        """The batches for a product, large ones cut, each with how many examples it may be joined to.

        The first batch is checked not to mix examples, which is then taken to hold for the others.
        """
        keep_freed_memory(self.device, self._known.budget)
        for part, state in self._numbered(batches):
            n = len(part.numbers)
            if self._known.inspect(part, state):
                self._sound.clear()
            most = choose_part(self._known.graph(part), self.device, self._known.budget, keeps_graph)
            for some in blocks(n, 1, most):
                yield part if some.stop - some.start == n else part.select(some), self._joined(most)

    def _parts(self, batches: Iterable[Batch], keeps_graph: bool) -> Iterator[Part]:
        return join(self._inspected_parts(batches, keeps_graph))

    def _jvp(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        parts = self._parts(batches, keeps_graph=False)
        return push_forward(self, self._network, v, parts, self._ways, self._sound)

    def _vjp(self, u: Tensor, batches: Iterable[Batch]) -> Tensor:
        return pull_back(self, self._network, u, self._parts(batches, keeps_graph=True))

    def _product(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        parts = self._parts(batches, keeps_graph=True)
        return fisher_product(self, self._network, v, parts, self._ways, self._sound)

    def _quadratic_form(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        parts = self._parts(batches, keeps_graph=False)
        return fisher_form(self, self._network, v, parts, self._ways, self._sound)


def _change(layers: LayerCollection, capture: Capture, directions: Tensor, v: Tensor, keep_graph: bool) -> Tensor:
    """J v of some outputs of the captured examples, shape (c, n)."""
    found = capture.layer_jacobians(directions.reshape(len(directions), *capture.outputs.shape), keep_graph)
    change = v.new_zeros(len(directions), capture.n)
    for layer_id, place in layers.slices().items():
        if layer_id in found:
            change += found[layer_id].jvp(v[place])
    return change
