"""Knowledge: which plan is exact for a model, how its examples are to be cut, and what found that out."""

from collections.abc import Sequence
from functools import partial

import torch

from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.sweep.generator import Generator
from nngeo_generators.capture import Capture
from nngeo_generators.chunking import DEFAULT_MEMORY_BUDGET, IN_FLIGHT, Chunks, Graph, choose_chunks, measure_graph
from nngeo_generators.confirmation import PlainPass, Waiting, what_waits
from nngeo_generators.examination import (
    check_among_all,
    check_examples,
    examined_plan,
    outputs_alone,
    raise_alone,
    run_unwritten,
)
from nngeo_generators.graph import coarsest
from nngeo_generators.joining import Part
from nngeo_generators.network import Network
from nngeo_generators.passes import Passes
from nngeo_generators.plan import Use, make_plan
from nngeo_generators.trust import differ

__all__ = ["Knowledge"]

EXAMINED = 8
"""Examples of a batch that the comparison with a plain gradient pass takes."""


class Knowledge:
    """What is known of a model by now; a batch that may show something else is examined before its numbers are believed.

    Args:
        generator: Knows the layers, the directions, the memory budget and what is to be checked.
        network: Maps a batch to the outputs.

    Attributes:
        passes: Passes with hooks on.
        first_plan: The plan from the modules' types alone.
        plan: The one that has shown to be exact.
        batched: Whether several directions can go backward at once.
        budget: In bytes.
    """

    def __init__(self, generator: Generator, network: Network) -> None:
        self.generator, self.network = generator, network
        self.passes = Passes(generator, network)
        self.first_plan = self.plan = make_plan(generator.model, generator.layer_collection)
        self.budget = generator.memory_budget or DEFAULT_MEMORY_BUDGET
        self.batched = True
        self._trusted: object = None
        self._inspected: object = None
        self._examined_shapes: set[object] = set()
        self._chunks: dict[object, Chunks] = {}
        self._graphs: dict[object, Graph] = {}
        self._alone: tuple[Sequence[Use], Capture, Graph] | None = None
        self._measured_shapes: object = None

    @property
    def trusted(self) -> bool:
        """Whether a first batch was examined."""
        return self._trusted is not None

    def capture(self, part: Part) -> Capture:
        """One forward pass by the plan; by a better one if these examples show that it does not do."""
        capture = self._forward(part, self.plan)
        if capture.refused and self.generator.check != "off":
            self._examine(part, self.plan)
            capture = self._forward(part, self.plan)
        return capture

    def trust(self, part: Part, state: object, may_wait: bool = False) -> list[Waiting]:
        """The check of the model, when it is due; what waits, where that may be and can."""
        n, shapes = len(part.numbers), part.shapes
        due = self._is_due(self._trusted, state, n)
        if not due and (self.generator.check != "first-batch" or n < 2 or shapes in self._examined_shapes):
            return []
        plan = self.first_plan if due else self.plan
        try:
            self._measure(part, plan)
            sample = self._sample(part, self._examined_bytes(part))
            if may_wait and due and self.generator.check == "first-batch" and self._alone is not None:
                waiting = what_waits(self.generator, part, state, self._alone, self.budget, len(sample.numbers))
                if waiting is not None:
                    self.plan, self.batched = plan, True
                    self._chunks.clear()
                    return [waiting]
            self._examine(sample, plan, seen=not due)
        except BaseException:
            self._alone = None  # or the graph would wait with it for a batch that may never come
            raise
        self._examined_shapes = {shapes} if due else self._examined_shapes | {shapes}
        self._trusted = (state, n > 1)
        return []

    def confirmed(self, part: Part, waiting: Waiting) -> JacobianBatch | None:
        """The Jacobians of examples that begin with those whose check waits, if they pass it.

        None if they do not show it: then the examination, which knows few examples, has had its say, and the outputs are
        those of few examples.
        """
        if len(part.numbers) > waiting.most:
            self.trust(waiting.part, waiting.state)
            return None
        try:
            batch = self._by_plain_pass(part, waiting)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # of the model, on all examples or on some: the examination says what is wrong
            batch = None
        if batch is None:
            self.trust(waiting.part, waiting.state)
            self._trusted = None  # not yet: an error from here on has to come again
            check_among_all(self.network, part.batch, waiting.some)
        self._examined_shapes, self._trusted = {part.shapes}, (waiting.state, True)
        return batch

    def inspect(self, part: Part, state: object) -> bool:
        """Whether a batch for a product was due to be looked at: then its examples do not mix."""
        n = len(part.numbers)
        if not self._is_due(self._inspected, state, n):
            return False
        sample = self._sample(part, 3 * self.graph(part).total).batch
        with torch.enable_grad():
            outputs = run_unwritten(self.network, sample)
        check_examples(self.network, sample, outputs)
        self._inspected = (state, n > 1)
        return True

    def chunks_of(self, part: Part) -> Chunks:
        """How to cut examples, found from the last of them alone."""
        shapes = part.shapes
        if shapes not in self._chunks:
            last = part.select(slice(len(part.numbers) - 1, None))
            measured, self._alone = self._alone, None
            if measured is not None and shapes == self._measured_shapes and measured[0] == self.plan:
                _, alone, graph = measured
            else:
                alone, graph = measure_graph(partial(self.capture, last), self.generator.model.parameters())
            alone.raise_refused()
            directions, _ = self.generator.count_directions(alone.outputs.detach(), last.batch)
            self._chunks[shapes] = choose_chunks(alone.footprint, directions, self.generator.device, self.budget, graph)
        return self._chunks[shapes]

    def graph(self, part: Part) -> Graph:
        """What one example needs for a backward pass."""
        shapes = part.shapes
        if shapes not in self._graphs:
            alone = part.select(slice(len(part.numbers) - 1, None)).batch
            forward = partial(outputs_alone, self.network, alone, part.batch)
            _, self._graphs[shapes] = measure_graph(forward, self.generator.model.parameters())
        return self._graphs[shapes]

    def forget_alone(self) -> None:
        """Let go of an example's graph that was to decide how others are cut."""
        self._alone = None

    def _by_plain_pass(self, part: Part, waiting: Waiting) -> JacobianBatch | None:
        """The Jacobians of examples from one pass, if a plain pass and one over the last example alone confirm them."""
        plain = PlainPass(self.generator, self.network, part.batch, waiting.some)
        capture = self._forward(part, self.plan)
        outputs, last = capture.outputs.detach(), len(waiting.part.numbers) - 1
        if differ(waiting.alone, outputs[last : last + 1], coarsest(capture.outputs)):
            return None
        total, _ = self.generator.count_directions(outputs, part.batch)
        batch = self.passes.jacobians(capture, part.batch, slice(0, total), total, total)
        return batch if plain.confirms(outputs, batch) else None

    def _forward(self, part: Part, plan: Sequence[Use]) -> Capture:
        return self.passes.forward(part, plan, self.batched)

    def _is_due(self, seen: object, state: object, n: int) -> bool:
        """Whether to look at a batch: one example alone shows no mixing, so the first batch with more is due again."""
        unseen = seen not in ((state, n > 1), (state, True))
        return self.generator.check == "every-batch" or (self.generator.check == "first-batch" and unseen)

    def _measure(self, part: Part, plan: Sequence[Use]) -> None:
        """Run the last example alone, with hooks on: what that takes decides how many are examined, and how all are cut."""
        last, self._alone = part.select(slice(len(part.numbers) - 1, None)), None
        try:
            capture, graph = measure_graph(partial(self._forward, last, plan), self.generator.model.parameters())
        except UnsupportedLayerError:
            return  # the examination mends it, or says why not
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise_alone(self.network, last.batch, part.batch, error)
        if not capture.refused:
            self._alone, self._measured_shapes = (plan, capture, graph), part.shapes
            self._graphs[self._measured_shapes] = graph

    def _examined_bytes(self, part: Part) -> int:
        """What the examination takes for each example: three graphs, and the layers' Jacobians of two directions."""
        graph = self.graph(part)
        try:
            one = None if self._alone is None else self._alone[1].footprint
        except UnsupportedLayerError:  # the examination mends it, or says why not
            one = self._alone = None
        jacobians = 0 if one is None else one.inputs + 2 * (one.gradients + IN_FLIGHT * graph.largest)
        return 3 * graph.total + jacobians

    def _sample(self, part: Part, bytes_each: int) -> Part:
        """What is examined of a batch: its last examples, as far as they fit the budget, and two at least."""
        n, some = len(part.numbers), max(2, min(EXAMINED, self.budget // max(1, bytes_each)))
        return part.select(slice(max(0, n - some), n))

    def _examine(self, part: Part, plan: Sequence[Use], seen: bool = False) -> None:
        """Mend a plan until it is exact on these examples, whose outputs may be constant if others were seen not to be."""
        forward, alone = partial(self._forward, part), None if self._alone is None else self._alone[1].outputs
        self.plan, batched = examined_plan(self.generator, self.network, plan, part.batch, forward, alone, seen)
        self.batched = self.batched if batched is None else batched
        self._chunks.clear()
