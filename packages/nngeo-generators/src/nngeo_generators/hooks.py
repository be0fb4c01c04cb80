"""HooksGenerator: Jacobians from hooks on the modules and one backward pass to the outputs of all layers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as PythonGenerator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nngeo_core.conventions import result_dtype
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.contraction import blocks
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.sweep.examples import Batch, count_examples, example_shapes, move_batch, select_examples, targets_of
from nngeo_core.sweep.generator import Generator
from nngeo_generators.capture import Capture, listening
from nngeo_generators.chunking import DEFAULT_MEMORY_BUDGET, Chunks, choose_chunks, graph_bytes
from nngeo_generators.examination import check_examples, examined_plan
from nngeo_generators.linearize import Way, all_ways
from nngeo_generators.matrix_free import fisher_product, pull_back, push_forward
from nngeo_generators.network import Network
from nngeo_generators.plan import Use, make_plan
from nngeo_generators.trust import check_finite, check_modes, model_state

__all__ = ["HooksGenerator"]

EXAMINED = 16
"""Examples of a batch that the comparison with a plain gradient pass takes."""


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
        self._network = Network(model, self._outputs)
        self._first_plan = self._plan = make_plan(model, self.layer_collection)
        self._batched = True
        self._trusted: object = None
        self._inspected: object = None
        self._examined_shapes: set[object] = set()
        self._chunks: dict[object, Chunks] = {}
        self._ways = [*all_ways(), self._by_layers]
        self._sound: set[Way] = set()

    def _jacobian(self, batch: Batch, directions: slice | None) -> JacobianBatch:
        check_modes(self.model)
        batch = move_batch(batch, self.device)
        if count_examples(batch):
            self._prepare(batch, 0, model_state(self.model))
        capture = self._capture(batch, 0)
        return self._slice(capture, batch, directions or slice(0, self.likelihood.n_directions(capture.outputs)))

    def stream(self, batches: Iterable[Batch]) -> PythonGenerator[JacobianBatch, None, None]:
        """The Jacobians of all examples: whole examples with all their directions where those fit the memory budget."""
        check_modes(self.model)
        state = model_state(self.model)
        for number, received in enumerate(batches):
            batch = move_batch(received, self.device)
            n = count_examples(batch)
            chunks = self._prepare(batch, number, state) if n else Chunks(1, 1)
            for examples in blocks(n, 1, chunks.examples):
                chunk = select_examples(batch, examples)
                capture = self._capture(chunk, number)
                for directions in blocks(self.likelihood.n_directions(capture.outputs), 1, chunks.directions):
                    yield self._slice(capture, chunk, directions)

    def _outputs(self, batch: Batch) -> Tensor:
        return self.outputs(batch, count_examples(batch))

    def _capture(self, batch: Batch, number: int) -> Capture:
        """One forward pass by the plan; by a better one if this batch shows that it does not do."""
        capture = self._forward(batch, number, self._plan)
        if capture.refused and self.check != "off":
            self._examine(batch, number, self._plan)
            capture = self._forward(batch, number, self._plan)
        return capture

    def _forward(self, batch: Batch, number: int, plan: Sequence[Use]) -> Capture:
        """One forward pass with hooks on, and one over an example alone where calls are to be run again."""
        capture = self._listen(batch, plan)
        check_finite(capture.outputs, self.model, partial(self._outputs, batch), number)
        capture.check_unchanged()
        if capture.needs_axes() and not capture.refused:
            capture.find_axes(self._listen(select_examples(batch, slice(0, 1)), plan))
        if self.check != "off":
            capture.check_order()
        return capture

    def _listen(self, batch: Batch, plan: Sequence[Use]) -> Capture:
        capture = Capture(plan, count_examples(batch), self._batched)
        try:
            with torch.enable_grad(), listening(capture):
                capture.outputs = self._network(batch)
        except Exception as error:
            if not capture.altered or isinstance(error, torch.OutOfMemoryError):
                raise
            capture.outputs = self._network(batch)  # raises what the model itself raises
            capture.refused |= capture.altered
        return capture

    def _slice(self, capture: Capture, batch: Batch, chosen: slice) -> JacobianBatch:
        """The Jacobians of the captured examples for some directions."""
        capture.raise_refused()
        outputs = capture.outputs.detach()
        total = self.likelihood.n_directions(outputs)
        targets = targets_of(batch) if self.likelihood.needs_targets else None
        directions = self.likelihood.directions(outputs, targets, chosen)
        layers = capture.layer_jacobians(directions, keep_graph=chosen.stop < total)
        return JacobianBatch(layers, capture.n, chosen, total, result_dtype(outputs.dtype), outputs.device)

    def _prepare(self, batch: Batch, number: int, state: object) -> Chunks:
        """How to cut a batch, found from its last example alone; and the check of the model when it is due."""
        n, shapes = count_examples(batch), example_shapes(batch)
        due = self._is_due(self._trusted, state, n)
        if due or (self.check == "first-batch" and n > 1 and shapes not in self._examined_shapes):
            self._examine(self._sample(batch, n), number, self._first_plan if due else self._plan)
            self._examined_shapes = {shapes} if due else self._examined_shapes | {shapes}
            self._trusted = (state, n > 1)
        if shapes not in self._chunks:
            alone = self._capture(select_examples(batch, slice(n - 1, n)), number)
            alone.raise_refused()
            directions = self.likelihood.n_directions(alone.outputs)
            budget = self.memory_budget or DEFAULT_MEMORY_BUDGET
            self._chunks[shapes] = choose_chunks(alone.footprint(), directions, self.device, budget)
        return self._chunks[shapes]

    def _by_layers(
        self, network: Network, parameters: Mapping[str, Tensor], tangents: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Outputs with their graph, and J v from the layers' Jacobians: for a backward pass without derivative of its own."""
        v = torch.cat([tangent.flatten() for tangent in tangents])
        chunks = self._prepare(batch, 0, model_state(self.model))
        rows = []
        for examples in blocks(count_examples(batch), 1, chunks.examples):
            capture = self._capture(select_examples(batch, examples), 0)
            capture.raise_refused()
            c = capture.outputs[0].numel()
            identity = torch.eye(c).to(capture.outputs)[:, None].expand(-1, capture.n, -1)
            changes = [
                _change(self.layer_collection, capture, identity[some], v, keep_graph=some.stop < c)
                for some in blocks(c, 1, chunks.directions)
            ]
            rows.append(torch.cat(changes).T)
        outputs = network.with_parameters(parameters, batch)
        return outputs, torch.cat(rows).reshape(outputs.shape).to(outputs)

    def _is_due(self, seen: object, state: object, n: int) -> bool:
        """Whether to look at a batch: one example alone shows no mixing, so the first batch with more is due again."""
        unseen = seen not in ((state, n > 1), (state, True))
        return self.check == "every-batch" or (self.check == "first-batch" and unseen)

    def _sample(self, batch: Batch, n: int) -> Batch:
        """What is examined of a batch of n examples: its last ones, as many as three graphs of them fit the budget."""
        few = min(n, 2)
        forward = partial(self._network, select_examples(batch, slice(n - few, n)))
        each = 3 * graph_bytes(forward, self.model.parameters()) // few
        some = max(2, min(EXAMINED, (self.memory_budget or DEFAULT_MEMORY_BUDGET) // max(1, each)))
        return select_examples(batch, slice(max(0, n - some), n))

    def _examine(self, batch: Batch, number: int, plan: Sequence[Use]) -> None:
        """Mend a plan until it is exact on these examples."""
        forward = partial(self._forward, batch, number)
        self._plan, self._batched = examined_plan(self, self._network, plan, batch, forward)
        self._chunks.clear()

    def _inspect(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; the first is seen not to mix examples, which the products of the others then do not either."""
        check_modes(self.model)
        state = model_state(self.model)
        for received in batches:
            batch = move_batch(received, self.device)
            n = count_examples(batch)
            if n and self._is_due(self._inspected, state, n):
                check_examples(self._network, self._sample(batch, n))
                self._inspected = (state, n > 1)
                self._sound.clear()
            yield batch

    def _jvp(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        return push_forward(self, v, self._inspect(batches), self._ways, self._sound)

    def _vjp(self, u: Tensor, batches: Iterable[Batch]) -> Tensor:
        return pull_back(self, u, self._inspect(batches))

    def _product(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        return fisher_product(self, v, self._inspect(batches), self._ways, self._sound)


def _change(layers: LayerCollection, capture: Capture, directions: Tensor, v: Tensor, keep_graph: bool) -> Tensor:
    """J v of some outputs of the captured examples, shape (c, n)."""
    found = capture.layer_jacobians(directions.reshape(len(directions), *capture.outputs.shape), keep_graph)
    change = v.new_zeros(len(directions), capture.n)
    for layer_id, place in layers.slices().items():
        if layer_id in found:
            change += found[layer_id].jvp(v[place])
    return change
