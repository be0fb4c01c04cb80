"""HessianGenerator: products with the Hessian of the mean loss, and blocks of it, by two backward passes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from nngeo_core.errors import NNGeoError, UnsupportedLayerError
from nngeo_core.jacobians.contraction import blocks
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.empirical import Loss, per_example
from nngeo_core.sweep.examples import Batch, count_examples, example_shapes, move_batch, select_examples
from nngeo_core.sweep.operator import OperatorGenerator
from nngeo_generators.backward import pull_back_each
from nngeo_generators.chunking import DEFAULT_MEMORY_BUDGET, measure_graph
from nngeo_generators.examination import check_examples, outputs_alone, run_unwritten
from nngeo_generators.linearize import differentiable_attention
from nngeo_generators.matrix_free import NO_EXAMPLES, checked_result, leaves
from nngeo_generators.network import Network
from nngeo_generators.trust import check_finite, checked_state

__all__ = ["HessianGenerator"]

EXAMINED = 8
"""Examples of a batch that are looked at."""

GRAPHS = 4
"""Forward graphs that the graph of a gradient takes, with what its derivative adds."""


class HessianGenerator(OperatorGenerator):
    """M = d^2 / d theta^2 (1/n) sum_i loss_i: symmetric, in general indefinite, and without Jacobians.

    A product is the derivative of v . gradient: one forward and two backward passes (Pearlmutter 1994). On the first batch,
    a model that mixes examples is refused, and u . (M v) is compared with v . (M u), which shows a backward pass that is not
    itself differentiable. What a model detaches counts as a constant, as it does for autograd.

    Args:
        model: As for `OperatorGenerator`.
        likelihood: Its -log p(y | outputs) is the loss, whose gradient `score` is; beside a loss, says which positions count.
        function: As for `OperatorGenerator`.
        layer_collection: As for `OperatorGenerator`.
        device: As for `OperatorGenerator`.
        n_output: As for `OperatorGenerator`.
        memory_budget: As for `OperatorGenerator`.
        check: As for `OperatorGenerator`.
        loss: Maps outputs (n, ...) and targets to one loss for each example, shape (n,).

    Example:
        >>> from nngeo_core import PVector
        >>> model = nn.Linear(2, 1, bias=False)
        >>> generator = HessianGenerator(model, "regression", loss=lambda outputs, y: (outputs - y).square().sum(1))
        >>> v = PVector(generator.layer_collection, torch.tensor([1.0, 0.0]))
        >>> generator.product(v, (torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]))).get_flat_representation()
        tensor([2., 4.])
    """

    name = "hessian"

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
        loss: Loss | None = None,
    ) -> None:
        super().__init__(model, likelihood, function, layer_collection, device, n_output, memory_budget, check)
        self.loss = loss
        self._network = Network(self.model, lambda batch: self.outputs(batch, count_examples(batch)))
        self._bytes: dict[object, int] = {}
        self._trusted: object = None

    def _product(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        parameters = leaves(self.model, self.layer_collection)
        n, total = 0, torch.zeros_like(v)
        for part, number in self._parts(batches):
            total += self._product_of(part, number, v, parameters)
            n += count_examples(part)
        if not n:
            raise ValueError(NO_EXAMPLES)
        return checked_result(total / n, "M v")

    def _blocks(self, places: Sequence[slice], batches: Iterable[Batch]) -> list[Tensor]:
        parameters = leaves(self.model, self.layer_collection)
        found = [
            torch.zeros((place.stop - place.start,) * 2, dtype=self._dtype(), device=self.device) for place in places
        ]
        n = 0
        for part, number in self._parts(batches):
            with differentiable_attention(), torch.enable_grad():
                gradient = self._gradient(part, number, parameters)
                for block, place in zip(found, places, strict=True):
                    self._add_block(block, gradient, place, parameters)
            n += count_examples(part)
        if not n:
            raise ValueError(NO_EXAMPLES)
        return [checked_result((block + block.T) / (2 * n), "a block of M") for block in found]

    def _add_block(self, block: Tensor, gradient: Tensor, place: slice, parameters: Mapping[str, Tensor]) -> None:
        """Add the derivatives of some coordinates of the gradient with respect to the same parameters."""
        starts = accumulate((leaf.numel() for leaf in parameters.values()), initial=0)
        inside = [
            (start, leaf)
            for start, leaf in zip(starts, parameters.values(), strict=False)
            if start < place.stop and start + leaf.numel() > place.start
        ]
        wanted, first = [leaf for _, leaf in inside], inside[0][0]
        for some in blocks(len(block), GRAPHS * gradient.nbytes, self.memory_budget or DEFAULT_MEMORY_BUDGET):
            units = gradient.new_zeros(some.stop - some.start, len(gradient))
            units[:, place.start + some.start :].fill_diagonal_(1)
            rows = _differentiated(gradient, wanted, units, keep_graph=True)
            block[some] += rows[:, place.start - first : place.stop - first]

    def _product_of(self, batch: Batch, number: int, v: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """M v of one batch, summed over its examples."""
        with differentiable_attention(), torch.enable_grad():
            gradient = self._gradient(batch, number, parameters)
            directions = v.to(gradient.dtype).unsqueeze(0)
            return _differentiated(gradient, list(parameters.values()), directions, keep_graph=False)[0]

    def _gradient(self, batch: Batch, number: int, parameters: Mapping[str, Tensor]) -> Tensor:
        """The gradient of the summed loss of a batch, flat and with its graph."""
        outputs = self._network.with_parameters(parameters, batch)
        check_finite(outputs.detach(), self.model, partial(self._network, batch), [number] * len(outputs))
        mask = self.position_mask(outputs, batch)
        if mask is not None:  # positions that do not count are constants
            kept = self.likelihood.spread(mask, outputs).bool()
            outputs = torch.where(kept, outputs, outputs.detach())
        targets = self.likelihood.observed(batch)
        root, cotangent = outputs, None
        if self.loss is not None:
            root = per_example(self.loss, outputs, targets).sum()
        else:
            cotangent = -self.likelihood.score(outputs, targets)
        wanted = list(parameters.values())
        if not root.requires_grad:
            return torch.zeros(sum(leaf.numel() for leaf in wanted), dtype=outputs.dtype, device=outputs.device)
        with _explained():
            found = torch.autograd.grad(
                root, wanted, cotangent, create_graph=True, allow_unused=True, materialize_grads=True
            )
        return torch.cat([part.flatten() for part in found])

    def _parts(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, int]]:
        """The batches that have examples, of which as many at a time as fit the memory budget, with the batch's number."""
        state = checked_state(self.model)
        for number, received in enumerate(batches):
            batch = move_batch(received, self.device)
            n = count_examples(batch)
            if n:
                self._examine(batch, n, state)
                parts = list(blocks(n, GRAPHS * self._bytes_of(batch), self.memory_budget or DEFAULT_MEMORY_BUDGET))
                for some in parts:
                    yield (batch if len(parts) == 1 else select_examples(batch, some)), number

    def _bytes_of(self, batch: Batch) -> int:
        """Those that one example's graph keeps."""
        shapes = example_shapes(batch)
        if shapes not in self._bytes:
            alone = select_examples(batch, slice(0, 1))
            _, graph = measure_graph(partial(outputs_alone, self._network, alone, batch), self.model.parameters())
            self._bytes[shapes] = graph.total
        return self._bytes[shapes]

    def _examine(self, batch: Batch, n: int, state: object) -> None:
        """Look at a batch when that is due: examples must not mix, and M must be symmetric."""
        seen = self._trusted in ((state, n > 1), (state, True))
        if self.check == "off" or (self.check == "first-batch" and seen):
            return
        sample = batch if n <= EXAMINED else select_examples(batch, slice(n - EXAMINED, n))
        check_examples(self._network, sample, run_unwritten(self._network, sample))
        parameters = leaves(self.model, self.layer_collection)
        source, d = torch.Generator().manual_seed(0), self.layer_collection.numel()
        u, v = torch.randn(2, d, generator=source, device="cpu").to(self.device, self._dtype())
        mu, mv = (self._product_of(sample, 0, vector, parameters).to(u.dtype) for vector in (u, v))
        rounding = max(torch.finfo(leaf.dtype).eps for leaf in parameters.values()) ** 0.5
        if (u @ mv - v @ mu).abs() > rounding * (u.norm() * mv.norm() + v.norm() * mu.norm()):
            raise NNGeoError(
                f"the second derivatives of this model's loss are not symmetric, u.(M v) = {float(u @ mv):.6g} and v.(M u) = "
                f"{float(v @ mu):.6g}: a backward pass in it is not differentiable as it should be, be it of a custom autograd "
                "function or of torch's own weight_norm on a CPU; the Gauss-Newton matrix, GGN(...), needs none of this"
            )
        self._trusted = (state, n > 1)


def _differentiated(gradient: Tensor, wanted: Sequence[Tensor], directions: Tensor, keep_graph: bool) -> Tensor:
    """The derivatives of k combinations of a gradient (d,), shape (k, number of parameters), for directions (k, d)."""
    k = len(directions)
    if not gradient.requires_grad:
        return gradient.new_zeros(k, sum(leaf.numel() for leaf in wanted))
    with _explained():
        try:
            parts = pull_back_each([gradient], wanted, [directions], keep_graph)
        except RuntimeError as error:
            if k == 1 or isinstance(error, torch.OutOfMemoryError):
                raise
            parts = pull_back_each([gradient], wanted, [directions], keep_graph, batched=False)
    rows = [
        gradient.new_zeros(k, leaf.numel()) if part is None else part.flatten(1)
        for part, leaf in zip(parts, wanted, strict=True)
    ]
    return torch.cat(rows, 1)


@contextmanager
def _explained() -> Iterator[None]:
    """Autograd's refusals as errors that say what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UnsupportedLayerError(
            f"autograd has no second derivative of this model: {error}; the Gauss-Newton matrix, GGN(...), needs none"
        ) from error
