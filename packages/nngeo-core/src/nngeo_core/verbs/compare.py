"""compare_representations: which representation approximates F best, on one's own model and data."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from nngeo_core.conventions import checked_regul
from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.choice import chosen_likelihood
from nngeo_core.likelihoods.draws import fresh_seed
from nngeo_core.likelihoods.sampled import MonteCarlo
from nngeo_core.matrices.choice import Representation, chosen_representation
from nngeo_core.plugins import registry
from nngeo_core.sweep.generator import Generator
from nngeo_core.verbs.comparison.labels import labelled
from nngeo_core.verbs.comparison.measurement import measured
from nngeo_core.verbs.comparison.records import Average, Reference
from nngeo_core.verbs.comparison.result import RepresentationComparison
from nngeo_core.verbs.comparison.vectors import Probes, exact_products

__all__ = ["compare_representations"]

RELATIVE_DAMPINGS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""The default r, in units of the mean eigenvalue of F."""


def compare_representations(
    model: nn.Module,
    loader: Any,
    representations: Sequence[Representation] | Mapping[str, Representation],
    n_output: int | None = None,
    variant: str | Likelihood = "classif_logits",
    device: torch.device | str | None = None,
    function: Callable[..., Any] | None = None,
    layer_collection: LayerCollection | None = None,
    progress: bool = False,
    memory_budget: int | None = None,
    check: str = "first-batch",
    *,
    trials: int | None = None,
    dampings: Sequence[float] | None = None,
    vectors: int = 30,
    per_layer: bool = True,
    layer_times: bool = False,
    generator: torch.Generator | None = None,
) -> RepresentationComparison:
    """Measure representations A of F on a model and its data, against the exact F without a matrix.

    The figures are those of George (2021), section 3.1: the relative errors (approximate minus true, over true) of the trace
    and of v^T F v, the cosine of A v and F v, and for v' = (A + r I)^-1 (F + r I) v the cosine of v' and v and the residual
    |v - v'| / |v|: means and standard errors over vectors v uniform on the unit sphere, the same ones for all. Beside them
    the times of building, `mv` and `solve`, and memory. Within each layer l the same is measured of its diagonal blocks, A_ll
    against F_ll, with the layer's part of v: a layer's figures are those of a comparison about that layer alone.

    The exact product with each vector takes a pass over the examples, and the exact blocks of all layers take one more in
    all. Then come what building the representations takes, one after the other, and for each vector and representation one
    product and `len(dampings)` solves, twice as many with `per_layer`. Beside the representation at hand, `3 * vectors`
    vectors of the size of the model are kept (`2 * vectors` without `per_layer`).

    Args:
        model: As for `FIM`.
        loader: As for `FIM`; a loader must give the same examples each time, in whatever order.
        representations: A list of what `FIM` takes as one representation: registered names, classes, mappings from layers to
            those; or a mapping from labels of your own to them.
        n_output: As for `FIM`.
        variant: As for `FIM`.
        device: As for `FIM`.
        function: As for `FIM`.
        layer_collection: As for `FIM`.
        progress: Whether to show progress bars.
        memory_budget: As for `FIM`.
        check: As for `FIM`.
        trials: How many targets to draw for each example: all representations, and the exact products, are then about the
            one matrix of `FIM_MonteCarlo` with these draws. None for the exact F.
        dampings: Values of r, each >= 0. By default the mean eigenvalue of F, tr F / d, times 0.01, 0.1, 1, 10 and 100.
        vectors: How many v.
        per_layer: Whether to measure within layers too.
        layer_times: Whether to time each layer alone too: it builds every representation once more for each layer.
        generator: Source of the draws and the vectors; None takes seeds from the operating system.

    Returns:
        A `RepresentationComparison`, which prints as tables. What a representation refuses is missing there, with the reason.

    Raises:
        PluginError: A name is unknown; lists the known ones.
        TypeError, ValueError: Labels, dampings or the number of vectors make no sense, or as for `FIM`.
        UnsupportedLayerError, NonFiniteError: As for `FIM`, of the exact products.

    Example:
        >>> model, x = nn.Linear(2, 3), torch.tensor([[1.0, 2.0], [0.0, -1.0]])
        >>> found = compare_representations(model, x, ["dense", "diag"], vectors=10, dampings=[0.1])
        >>> round(found.measurements["dense"].total.cosine.mean, 4), abs(found.measurements["diag"].total.trace_error) < 1e-6
        (1.0, True)
        >>> found.recommendation.split(" (")[0]
        'Recommendation: dense for products and solves'
    """
    choices = labelled(representations)
    likelihood, source = chosen_likelihood(variant), _source(generator)
    chosen = None if dampings is None else _checked_dampings(dampings)
    if isinstance(vectors, bool) or not isinstance(vectors, int) or vectors < 1:
        raise ValueError(f"vectors is how many random vectors to average over, at least 1; got {vectors!r}")
    drawn = None if trials is None else MonteCarlo(likelihood, trials, fresh_seed(source))
    arguments = (model, drawn or likelihood, function, layer_collection, device, n_output, memory_budget, check)
    differentiate: Generator = registry.generator("hooks")(*arguments)
    _check_mappings(choices, differentiate)
    probes = exact_products(differentiate, loader, vectors, per_layer, source, progress)
    chosen = chosen or _default_dampings(probes)
    measurements = {
        label: measured(differentiate, loader, choice, chosen, probes, label if progress else None, layer_times)
        for label, choice in choices.items()
    }
    return RepresentationComparison(
        measurements,
        _reference(probes),
        chosen,
        {layer_id: layer.numel() for layer_id, layer in probes.layer_collection.items()},
        probes.n_examples,
        vectors,
        likelihood.name,
        trials,
        None if drawn is None else drawn.seed,
        str(probes.vectors.dtype).removeprefix("torch."),
        str(probes.vectors.device),
    )


def _source(generator: torch.Generator | None) -> torch.Generator:
    """The generator, or one seeded by the operating system."""
    return torch.Generator().manual_seed(fresh_seed()) if generator is None else generator


def _check_mappings(choices: Mapping[str, Representation], differentiate: Generator) -> None:
    """Raise now what a mapping that does not fit the model would raise after the exact products."""
    for choice in choices.values():
        kind, by_layer = chosen_representation(choice)
        if by_layer is not None:
            with suppress(UnsupportedOperationError):  # which is a finding, not a mistake
                kind.prepare(differentiate, by_layer)


def _checked_dampings(dampings: Sequence[float]) -> tuple[float, ...]:
    """In increasing order."""
    found = tuple(sorted(checked_regul(r) for r in dampings))
    if not found or len(set(found)) < len(found):
        raise ValueError(f"dampings are different numbers r >= 0, at least one; got {list(dampings)}")
    return found


def _default_dampings(probes: Probes) -> tuple[float, ...]:
    """Around the mean eigenvalue; around 1 if F is zero."""
    mean = float(probes.traces.sum()) / probes.layer_collection.numel()
    return tuple(factor * (mean or 1.0) for factor in RELATIVE_DAMPINGS)


def _reference(probes: Probes) -> Reference:
    forms = torch.stack(
        [v.double() @ product.double() for v, product in zip(probes.vectors, probes.products, strict=True)]
    )
    form, seconds = Average.of(forms), probes.clock.median("mv")
    assert form is not None and seconds is not None
    traces = dict(zip(probes.layer_collection, probes.traces.tolist(), strict=True))
    return Reference(float(probes.traces.sum()), form, traces, seconds)
