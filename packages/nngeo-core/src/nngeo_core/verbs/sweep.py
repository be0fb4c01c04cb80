"""One sweep over the data for the representations that a verb was asked for."""

from collections.abc import Sequence
from inspect import isabstract
from typing import Any

from nngeo_core.matrices.pmat import PMat
from nngeo_core.plugins import registry
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.centring import CentredAccumulator
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.populate import collect

__all__ = ["swept"]


def swept(
    generator: Generator, loader: Any, representation: Any, progress: bool, centred: bool = False
) -> PMat | list[PMat]:
    """The matrices that a generator's Jacobians sum up to, with as many passes as the neediest asks.

    Args:
        generator: Differentiates the model, with the metric on its outputs.
        loader: One batch or a loader.
        representation: A registered name, a class, or a list of those.
        progress: Whether to show a progress bar for each pass.
        centred: Whether to subtract the mean gradient from each example's.

    Returns:
        The matrix, or a list of matrices in the order of `representation`.
    """
    several = isinstance(representation, Sequence) and not isinstance(representation, str)
    choices: Any = representation if several else [representation]
    kinds = [_representation(choice) for choice in choices]
    if not kinds:
        raise ValueError("representation is an empty list; give at least one name or class")
    layers = generator.layer_collection
    accumulators: list[Accumulator] = [kind.accumulator(layers) for kind in kinds]
    if centred:
        accumulators = [CentredAccumulator(sums) for sums in accumulators]
    label = ", ".join(kind.__name__ for kind in kinds)
    found = collect(generator, loader, accumulators, label if progress else False)
    matrices = [
        kind(generator, data=data, n_examples=sums.n_examples)
        for kind, data, sums in zip(kinds, found, accumulators, strict=True)
    ]
    return matrices if several else matrices[0]


def _representation(choice: object) -> type[PMat]:
    if isinstance(choice, str):
        found: type[PMat] = registry.representation(choice, kind="pmat")
        return found
    if isinstance(choice, type) and issubclass(choice, PMat) and not isabstract(choice):
        return choice
    raise TypeError(
        f"representation is a name, a concrete PMat class, or a list of those; got {choice!r}. "
        f"Known names: {', '.join(registry.names('representations'))}"
    )
