"""What a representation costs for each layer alone."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from nngeo_core.layers.selection import layers_meant
from nngeo_core.matrices.choice import Representation
from nngeo_core.sweep.generator import Generator
from nngeo_core.vectors.pvector import PVector
from nngeo_core.verbs.comparison.attempts import Attempts
from nngeo_core.verbs.comparison.clock import Clock
from nngeo_core.verbs.comparison.records import LayerTimes
from nngeo_core.verbs.sweep import swept

__all__ = ["timed_by_layer"]


def timed_by_layer(
    generator: Generator, examples: Any, representation: Representation, v: Tensor, r: float
) -> dict[str, LayerTimes]:
    """Build the representation for one layer after the other, and time one product and two solves with it.

    Args:
        generator: Differentiates the model.
        examples: One batch or a loader.
        representation: What was compared as a whole.
        v: A vector about all layers, shape (d,).
        r: The damping of the solves.
    """
    layers, found = generator.layer_collection, {}
    for layer_id, place in layers.slices().items():
        attempts, choice = Attempts(Clock(generator.device)), _of_layer(representation, generator, layer_id)
        alone = partial(generator.restricted, layers.restricted([layer_id]))
        matrix: Any = attempts.tried("build", partial(swept, alone, examples, choice, False, None))
        if matrix is not None:
            vector = PVector(matrix.layer_collection, vector_repr=v[place])
            attempts.tried("mv", partial(matrix.mv, vector))
            attempts.tried("first solve", partial(matrix.solve, vector, r))
            attempts.tried("solve", partial(matrix.solve, vector, r))
        found[layer_id] = LayerTimes(*map(attempts.clock.median, ("build", "mv", "first solve", "solve")))
    return found


def _of_layer(representation: Representation, generator: Generator, layer_id: str) -> Representation:
    """What a mapping says for one layer: the value of the first key that means it."""
    if not isinstance(representation, Mapping):
        return representation
    layers, keys = generator.layer_collection, [key for key in representation if key is not None]
    meant = layers_meant(generator.model, layers.parameter_names, keys, layers.rules)
    return representation[next((key for key, held in zip(keys, meant, strict=True) if layer_id in held), None)]
