"""HooksGenerator: Jacobians from hooks on the modules and one backward pass to the outputs of all layers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as PythonGenerator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.contraction import blocks
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.sweep.examples import Batch, count_examples, move_batch, select_examples
from nngeo_core.sweep.generator import Generator
from nngeo_generators.capture import Capture, listening
from nngeo_generators.chunking import (
    DEFAULT_MEMORY_BUDGET,
    IN_FLIGHT,
    Chunks,
    Graph,
    choose_chunks,
    choose_part,
    keep_freed_memory,
    measure_graph,
    signed_blocks,
)
from nngeo_generators.confirmation import PlainPass, Waiting, what_waits
from nngeo_generators.coverage import Coverage, coverage_of
from nngeo_generators.examination import (
    check_among_all,
    check_examples,
    examined_plan,
    outputs_alone,
    raise_alone,
    run_unwritten,
)
from nngeo_generators.graph import coarsest
from nngeo_generators.joining import Part, join
from nngeo_generators.linearize import Sound, all_ways
from nngeo_generators.matrix_free import fisher_form, fisher_product, pull_back, push_forward
from nngeo_generators.network import Network
from nngeo_generators.plan import Use, make_plan
from nngeo_generators.trust import check_finite, checked_state, differ

__all__ = ["HooksGenerator"]

EXAMINED = 8
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
        self._network = Network(self.model, self._outputs)
        self._first_plan = self._plan = make_plan(self.model, self.layer_collection)
        self._batched = True
        self._trusted: object = None
        self._inspected: object = None
        self._examined_shapes: set[object] = set()
        self._chunks: dict[object, Chunks] = {}
        self._graphs: dict[object, Graph] = {}
        self._alone: tuple[Sequence[Use], Capture, Graph] | None = None
        self._measured_shapes: object = None
        self._budget = self.memory_budget or DEFAULT_MEMORY_BUDGET
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
        return coverage_of(self._plan, self._first_plan, self.layer_collection, examined=self._trusted is not None)

    def _jacobian(self, batch: Batch, directions: slice | None) -> JacobianBatch:
        state = checked_state(self.model)
        batch = move_batch(batch, self.device)
        part = Part(batch, (0,) * count_examples(batch))
        if part.numbers:
            self._trust(part, state)
            self._alone = None  # whole examples at once: nothing to be cut
        capture = self._capture(part)
        total, negative = self.count_directions(capture.outputs.detach(), batch)
        return self._slice(capture, batch, directions or slice(0, total), total, total - negative)

    def stream(self, batches: Iterable[Batch]) -> PythonGenerator[JacobianBatch, None, None]:
        """The Jacobians of all examples: whole examples with all their directions where those fit the memory budget."""
        keep_freed_memory(self.device, self._budget)
        waiting: list[Waiting] = []
        for part in join(self._arriving(batches, waiting)):
            confirmed = self._confirmed(part, waiting.pop()) if waiting else None
            if confirmed is not None:
                yield confirmed
                continue
            n, chunks = len(part.numbers), self._chunks_of(part)
            for examples in blocks(n, 1, chunks.examples):
                chunk = part.select(examples)
                capture = self._capture(chunk)
                total, negative = self.count_directions(capture.outputs.detach(), chunk.batch)
                for directions in signed_blocks(total, negative, chunks.directions):
                    yield self._slice(capture, chunk.batch, directions, total, total - negative)

    def _arriving(self, batches: Iterable[Batch], waiting: list[Waiting]) -> Iterator[tuple[Part, int]]:
        """The batches that have examples, each with how many examples it may be joined to.

        They are trusted, but for a first one whose check can wait, and those like it: what waits is put on the list.
        """
        for place, (part, state) in enumerate(self._numbered(batches)):
            if waiting and part.shapes != waiting[0].part.shapes:
                first = waiting.pop()
                self._trust(first.part, first.state)
            if not waiting:
                waiting += self._trust(part, state, may_wait=place == 0)
            yield part, self._joined(self._chunks_of(part).joined)

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

    def _capture(self, part: Part) -> Capture:
        """One forward pass by the plan; by a better one if these examples show that it does not do."""
        capture = self._forward(part, self._plan)
        if capture.refused and self.check != "off":
            self._examine(part, self._plan)
            capture = self._forward(part, self._plan)
        return capture

    def _forward(self, part: Part, plan: Sequence[Use]) -> Capture:
        """One forward pass with hooks on, and one over an example alone where calls are to be run again."""
        capture = self._listen(part.batch, plan)
        check_finite(capture.outputs, self.model, partial(self._outputs, part.batch), part.numbers)
        capture.check_unchanged()
        if capture.needs_axes() and not capture.refused:
            capture.find_axes(self._listen(select_examples(part.batch, slice(0, 1)), plan))
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

    def _slice(self, capture: Capture, batch: Batch, chosen: slice, total: int, positive: int) -> JacobianBatch:
        """The Jacobians of the captured examples for some of all directions, of which the first `positive` have no sign."""
        capture.raise_refused()
        if chosen.start < positive < chosen.stop:
            raise ValueError(
                f"directions {chosen.start} to {chosen.stop} were asked for, of which those from {positive} on enter with a "
                f"minus sign; ask for slice({chosen.start}, {positive}) and slice({positive}, {chosen.stop}) one by one"
            )
        outputs = capture.outputs.detach()
        directions, mask = self.directions(outputs, batch, chosen), self.position_mask(outputs, batch)
        layers = capture.layer_jacobians(directions.to(outputs.dtype), keep_graph=chosen.stop < total, mask=mask)
        dtype, sign = result_dtype(outputs.dtype), 1 if chosen.start < positive or not total else -1
        return JacobianBatch(layers, capture.n, chosen, total, dtype, outputs.device, sign)

    def _trust(self, part: Part, state: object, may_wait: bool = False) -> list[Waiting]:
        """The check of the model, when it is due; what waits, where that may be and can."""
        n, shapes = len(part.numbers), part.shapes
        due = self._is_due(self._trusted, state, n)
        if due or (self.check == "first-batch" and n > 1 and shapes not in self._examined_shapes):
            plan = self._first_plan if due else self._plan
            self._measure(part, plan)
            sample = self._sample(part, self._examined_bytes(part))
            waiting = None
            if may_wait and due and self.check == "first-batch" and self._alone is not None:
                waiting = what_waits(self, part, state, self._alone, self._budget, len(sample.numbers))
            if waiting is not None:
                self._plan, self._batched = plan, True
                self._chunks.clear()
                return [waiting]
            self._examine(sample, plan, seen=not due)
            self._examined_shapes = {shapes} if due else self._examined_shapes | {shapes}
            self._trusted = (state, n > 1)
        return []

    def _confirmed(self, part: Part, waiting: Waiting) -> JacobianBatch | None:
        """The Jacobians of examples that begin with those whose check waits, if they pass it.

        None if they do not show it: then the examination, which knows few examples, has had its say, and the outputs are
        those of few examples.
        """
        if len(part.numbers) > waiting.most:
            self._trust(waiting.part, waiting.state)
            return None
        try:
            batch = self._by_plain_pass(part, waiting)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # of the model, on all examples or on some: the examination says what is wrong
            batch = None
        if batch is None:
            self._trust(waiting.part, waiting.state)
            self._trusted = None  # not yet: an error from here on has to come again
            check_among_all(self._network, part.batch, waiting.some)
        self._examined_shapes, self._trusted = {part.shapes}, (waiting.state, True)
        return batch

    def _by_plain_pass(self, part: Part, waiting: Waiting) -> JacobianBatch | None:
        """The Jacobians of examples from one pass, if a plain pass and one over the last example alone confirm them."""
        plain = PlainPass(self, self._network, part.batch, waiting.some)
        capture = self._forward(part, self._plan)
        outputs, last = capture.outputs.detach(), len(waiting.part.numbers) - 1
        if differ(waiting.alone, outputs[last : last + 1], coarsest(capture.outputs)):
            return None
        total, _ = self.count_directions(outputs, part.batch)
        batch = self._slice(capture, part.batch, slice(0, total), total, total)
        return batch if plain.confirms(outputs, batch) else None

    def _chunks_of(self, part: Part) -> Chunks:
        """How to cut examples, found from the last of them alone."""
        shapes = part.shapes
        if shapes not in self._chunks:
            last = part.select(slice(len(part.numbers) - 1, None))
            measured, self._alone = self._alone, None
            if measured is not None and shapes == self._measured_shapes and measured[0] == self._plan:
                _, alone, graph = measured
            else:
                alone, graph = measure_graph(partial(self._capture, last), self.model.parameters())
            alone.raise_refused()
            directions, _ = self.count_directions(alone.outputs.detach(), last.batch)
            self._chunks[shapes] = choose_chunks(alone.footprint, directions, self.device, self._budget, graph)
        return self._chunks[shapes]

    def _graph(self, part: Part) -> Graph:
        """What one example needs for a backward pass."""
        shapes = part.shapes
        if shapes not in self._graphs:
            alone = part.select(slice(len(part.numbers) - 1, None)).batch
            forward = partial(outputs_alone, self._network, alone, part.batch)
            _, self._graphs[shapes] = measure_graph(forward, self.model.parameters())
        return self._graphs[shapes]

    def _by_layers(
        self, network: Network, parameters: Mapping[str, Tensor], tangents: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Outputs with their graph, and J v from the layers' Jacobians: for a backward pass without derivative of its own."""
        v = torch.cat([tangent.flatten() for tangent in tangents])
        part = Part(batch, (0,) * count_examples(batch))
        self._trust(part, checked_state(self.model))
        chunks = self._chunks_of(part)
        rows = []
        for examples in blocks(len(part.numbers), 1, chunks.examples):
            capture = self._capture(part.select(examples))
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

    def _measure(self, part: Part, plan: Sequence[Use]) -> None:
        """Run the last example alone, with hooks on: what that takes decides how many are examined, and how all are cut."""
        last, self._alone = part.select(slice(len(part.numbers) - 1, None)), None
        try:
            capture, graph = measure_graph(partial(self._forward, last, plan), self.model.parameters())
        except UnsupportedLayerError:
            return  # the examination mends it, or says why not
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise_alone(self._network, last.batch, part.batch, error)
        if not capture.refused:
            self._alone, self._measured_shapes = (plan, capture, graph), part.shapes
            self._graphs[self._measured_shapes] = graph

    def _examined_bytes(self, part: Part) -> int:
        """What the examination takes for each example: three graphs, and the layers' Jacobians of two directions."""
        graph = self._graph(part)
        try:
            one = None if self._alone is None else self._alone[1].footprint
        except UnsupportedLayerError:  # the examination mends it, or says why not
            one = self._alone = None
        jacobians = 0 if one is None else one.inputs + 2 * (one.gradients + IN_FLIGHT * graph.largest)
        return 3 * graph.total + jacobians

    def _sample(self, part: Part, bytes_each: int) -> Part:
        """What is examined of a batch: its last examples, as far as they fit the budget, and two at least."""
        n, some = len(part.numbers), max(2, min(EXAMINED, self._budget // max(1, bytes_each)))
        return part.select(slice(max(0, n - some), n))

    def _examine(self, part: Part, plan: Sequence[Use], seen: bool = False) -> None:
        """Mend a plan until it is exact on these examples, whose outputs may be constant if others were seen not to be."""
        forward, alone = partial(self._forward, part), None if self._alone is None else self._alone[1].outputs
        self._plan, batched = examined_plan(self, self._network, plan, part.batch, forward, alone, seen)
        self._batched = self._batched if batched is None else batched
        self._chunks.clear()

    def _inspected_parts(self, batches: Iterable[Batch], keeps_graph: bool) -> Iterator[tuple[Part, int]]:
        """The batches for a product, large ones cut, each with how many examples it may be joined to.

        The first batch is checked not to mix examples, which is then taken to hold for the others.
        """
        keep_freed_memory(self.device, self._budget)
        for part, state in self._numbered(batches):
            n = len(part.numbers)
            if self._is_due(self._inspected, state, n):
                sample = self._sample(part, 3 * self._graph(part).total).batch
                with torch.enable_grad():
                    outputs = run_unwritten(self._network, sample)
                check_examples(self._network, sample, outputs)
                self._inspected = (state, n > 1)
                self._sound.clear()
            most = choose_part(self._graph(part), self.device, self._budget, keeps_graph)
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
