"""HooksGenerator: Jacobians from hooks on the modules and one backward pass to the outputs of all layers."""

from collections.abc import Callable, Iterable, Sequence
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
from nngeo_generators.chunking import DEFAULT_MEMORY_BUDGET, Chunks, choose_chunks
from nngeo_generators.examination import examined_plan
from nngeo_generators.linearize import all_ways
from nngeo_generators.matrix_free import fisher_product, pull_back, push_forward
from nngeo_generators.plan import Use, make_plan
from nngeo_generators.trust import check_finite, check_modes, model_state

__all__ = ["HooksGenerator"]

EXAMINED = 16
"""Examples of a batch that the comparison with a plain gradient pass takes."""


class HooksGenerator(Generator):
    """The generator for any model whose layers have rules.

    During a forward pass, a hook on each module notes what it was called with and the place in the graph where the
    derivative with respect to its output will arrive. One call of `torch.autograd.grad` to those places then yields, for
    any number of output directions, all that the layer rules need; no parameter gradient is ever formed.

    Takes the arguments of `Generator`. Raises `UnsupportedLayerError` on construction if a parameter of the layer
    collection belongs to a module without a rule.

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
        self._plan = make_plan(model, self.layer_collection)
        self._trusted: object = None
        self._chunks: dict[object, Chunks] = {}
        self._ways = all_ways()

    def _jacobian(self, batch: Batch, directions: slice | None) -> JacobianBatch:
        check_modes(self.model)
        batch = move_batch(batch, self.device)
        self._prepare(batch, 0, model_state(self.model))
        capture = self._forward(batch, 0)
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
                capture = self._forward(chunk, number)
                for directions in blocks(self.likelihood.n_directions(capture.outputs), 1, chunks.directions):
                    yield self._slice(capture, chunk, directions)

    def _forward(self, batch: Batch, number: int, plan: Sequence[Use] | None = None) -> Capture:
        """One forward pass with hooks on."""
        capture = Capture(self._plan if plan is None else plan, count_examples(batch))
        with torch.enable_grad(), listening(capture):
            capture.outputs = self.outputs(batch, capture.n)
        check_finite(capture.outputs, self.model, partial(self.outputs, batch, capture.n), number)
        capture.check_unchanged()
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
        seen = (state, n > 1)  # one example alone shows no mixing: the first batch with more is examined again
        unseen = self._trusted not in (seen, (state, True))
        if self.check == "every-batch" or (self.check == "first-batch" and unseen):
            some = select_examples(batch, slice(max(0, n - EXAMINED), n))
            self._plan = examined_plan(self, self._plan, some, lambda plan: self._forward(some, number, plan))
            self._trusted = seen
            self._chunks.clear()
        if shapes not in self._chunks:
            alone = self._forward(select_examples(batch, slice(n - 1, n)), number)
            alone.raise_refused()
            directions = self.likelihood.n_directions(alone.outputs)
            budget = self.memory_budget or DEFAULT_MEMORY_BUDGET
            self._chunks[shapes] = choose_chunks(alone.footprint(), directions, self.device, budget)
        return self._chunks[shapes]

    def _jvp(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        return push_forward(self, v, batches, self._ways)

    def _vjp(self, u: Tensor, batches: Iterable[Batch]) -> Tensor:
        return pull_back(self, u, batches)

    def _product(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        return fisher_product(self, v, batches, self._ways)
