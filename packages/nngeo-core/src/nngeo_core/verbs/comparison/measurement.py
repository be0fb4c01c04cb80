"""One representation, built and measured against the exact products."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nngeo_core.matrices.choice import Representation
from nngeo_core.matrices.pmat import PMat
from nngeo_core.sweep.generator import Generator
from nngeo_core.vectors.pvector import PVector
from nngeo_core.verbs.comparison.agreement import products_agree, relative_difference, solutions_agree
from nngeo_core.verbs.comparison.attempts import Attempts
from nngeo_core.verbs.comparison.blocks import blocks_of
from nngeo_core.verbs.comparison.clock import Clock, PeakMemory, with_bar
from nngeo_core.verbs.comparison.layer_times import timed_by_layer
from nngeo_core.verbs.comparison.records import Agreement, Average, Measurement
from nngeo_core.verbs.comparison.vectors import Probes
from nngeo_core.verbs.sweep import swept

__all__ = ["measured"]


def measured(
    generator: Generator,
    examples: Any,
    representation: Representation,
    dampings: Sequence[float],
    probes: Probes,
    label: str | None,
    layer_times: bool,
) -> Measurement:
    """Build a representation and compare it with the exact products, vector by vector.

    Args:
        generator: Differentiates the model.
        examples: One batch or a loader.
        representation: What to build.
        dampings: The r of the solves, smallest first.
        probes: The vectors.
        label: What progress bars start with; None for none.
        layer_times: Whether to build it for each layer alone too, to time that.
    """
    attempts, memory = Attempts(Clock(generator.device)), PeakMemory(generator.device)
    with memory:
        matrix: Any = attempts.tried(
            "build", lambda: swept(lambda: generator, examples, representation, label is not None, None)
        )
    stored = None if matrix is None else matrix.nbytes
    shares = {} if matrix is None else matrix.nbytes_per_layer()
    total, layers = _agreements(matrix, dampings, probes, attempts, label)
    clock, middle = attempts.clock, dampings[len(dampings) // 2]
    alone = layer_times and matrix is not None
    del matrix
    return Measurement(
        total,
        layers,
        timed_by_layer(generator, examples, representation, probes.vectors[0], middle) if alone else {},
        shares,
        stored,
        memory.bytes,
        clock.median("build"),
        clock.median("mv"),
        next(iter(clock.seconds["solve"]), None),
        clock.median("solve", skip=1),
        attempts.reasons,
    )


def _agreements(
    matrix: PMat | None,
    dampings: Sequence[float],
    probes: Probes,
    attempts: Attempts,
    label: str | None,
) -> tuple[Agreement, dict[str, Agreement]]:
    """The whole matrix's, and those of its layers' blocks, if they are wanted and can be had."""
    if matrix is None:
        nothing = (None,) * len(dampings)
        return Agreement(None, None, None, nothing, nothing), {}
    places = probes.layer_collection.slices()
    whole = _Side(matrix, probes.products, [slice(0, probes.layer_collection.numel())], dampings, attempts, "")
    blocks = None
    if probes.block_products is not None and len(places) > 1:
        within = attempts.tried("layers", lambda: blocks_of(matrix, probes.vectors[0]))
        if within is not None:
            blocks = _Side(within, probes.block_products, list(places.values()), dampings, attempts, "layers: ")
    for k in with_bar(range(len(probes.vectors)), label or "", label is not None):
        product = whole.multiply(probes.vectors[k])
        whole.measure(k, probes.vectors[k], product)
        if blocks is not None:
            same = blocks.matrix is matrix
            blocks.measure(k, probes.vectors[k], product if same else blocks.multiply(probes.vectors[k]))
    (total,) = whole.agreements(attempts.tried("trace", lambda: matrix.trace()[None]), probes.traces.sum()[None])
    if blocks is None:
        return total, dict.fromkeys(places, total) if probes.block_products is not None and len(places) == 1 else {}
    traces = attempts.tried("layers: trace", lambda: torch.stack(list(blocks.matrix.trace_per_layer().values())))
    return total, dict(zip(places, blocks.agreements(traces, probes.traces), strict=True))


class _Side:
    """A matrix A against the exact products, in some places of the flat vectors.

    Args:
        matrix: A.
        exact: F v, shape (k, d).
        places: Where the figures are taken: the whole, or each layer.
        dampings: r.
        attempts: Performs operations, and notes times and refusals.
        prefix: What the names of refused operations start with; only the whole's, which have none, are timed.
    """

    def __init__(
        self,
        matrix: PMat,
        exact: Tensor,
        places: Sequence[slice],
        dampings: Sequence[float],
        attempts: Attempts,
        prefix: str,
    ) -> None:
        self.matrix = matrix
        self._exact, self._places, self._dampings = exact, places, dampings
        self._attempts, self._prefix = attempts, prefix
        self._figures = torch.full(
            (len(exact), 1 + len(dampings), 2, len(places)), torch.nan, dtype=torch.float64, device="cpu"
        )

    def multiply(self, v: Tensor) -> Tensor | None:
        """A v, or None if that is refused."""
        return self._try("mv", "mv", partial(self.matrix.mv, self._vector(v)))

    def measure(self, k: int, v: Tensor, product: Tensor | None) -> None:
        """Note the figures of the k-th vector and its product, which is None where that is refused."""
        exact = self._exact[k]
        if product is not None:
            self._figures[k, 0] = products_agree(v, exact, product, self._places)
        for place, r in reversed(list(enumerate(self._dampings))):  # the largest is the least likely to be refused
            solve = partial(self.matrix.solve, self._vector(exact + r * v), r)
            found = self._try(f"solve with r = {r:g}", "solve", solve)
            if found is not None:
                self._figures[k, 1 + place] = solutions_agree(v, found, self._places)

    def agreements(self, traces: Tensor | None, exact_traces: Tensor) -> list[Agreement]:
        """What was noted, for each place.

        Args:
            traces: Those of A in each place; None where they are refused.
            exact_traces: Those of F.
        """
        unknown = torch.full_like(exact_traces, torch.nan)
        errors = relative_difference(unknown if traces is None else traces.double(), exact_traces)
        found = []
        for error, figures in zip(errors, self._figures.unbind(-1), strict=True):
            forms, cosines = (Average.of(values) for values in figures[:, 0].unbind(1))
            solve_cosines, residuals = (
                tuple(Average.of(values) for values in part.unbind(1)) for part in figures[:, 1:].unbind(2)
            )
            trace_error = float(error) if error.isfinite() else None
            found.append(Agreement(trace_error, forms, cosines, solve_cosines, residuals))
        return found

    def _vector(self, v: Tensor) -> PVector:
        return PVector(self.matrix.layer_collection, vector_repr=v)

    def _try(self, name: str, clock: str, run: Callable[[], PVector]) -> Tensor | None:
        found = self._attempts.tried(self._prefix + name, run, "" if self._prefix else clock)
        return None if found is None else found.get_flat_representation()
