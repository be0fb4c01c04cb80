"""The plan: which calls of which modules contribute to which layers, and by which rule."""

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

from torch import nn

from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.rule import LayerRule
from nngeo_core.layers.sources import Source, find_sources
from nngeo_core.plugins import registry

__all__ = ["Use", "make_plan"]


@dataclass(frozen=True)
class Use:
    """One module that uses parameters of a layer.

    Attributes:
        module: The module to listen to.
        path: Its path in the model.
        rule: What reads its Jacobian off a call.
        layer_id: The layer.
        names: Names local to the module of the layer's parameters, in the layer's order.
        places: Where those parameters lie in the layer, as slices of its flat parameters.
        layer_numel: Number of the layer's parameters.
    """

    module: nn.Module
    path: str
    rule: LayerRule
    layer_id: str
    names: tuple[str, ...]
    places: tuple[slice, ...]
    layer_numel: int


def make_plan(model: nn.Module, layers: LayerCollection) -> tuple[Use, ...]:
    """All uses of all layers' parameters.

    Raises:
        UnsupportedLayerError: A module uses one of the parameters and no rule differentiates it exactly.
    """
    homes = {name: layer_id for layer_id, names in layers.parameter_names.items() for name in names}
    order = {layer_id: place for place, layer_id in enumerate(layers)}
    uses: list[Use] = []
    for source in find_sources(model, homes.keys(), layers.rules):
        module = model.get_submodule(source.path)
        if source.rule is None:
            raise UnsupportedLayerError(
                f"'{source.path}' ({type(module).__name__}) uses {sorted(homes.keys() & source.names.values())} and "
                "has no layer rule; leave these parameters out of the layer collection, or install a plugin with a rule. "
                f"{registry.problems()}".rstrip()
            )
        held = {homes[name] for name in source.names.values() if name in homes}
        uses += [
            _use(layers, layer_id, source, source.rule, module) for layer_id in sorted(held, key=order.__getitem__)
        ]
    return tuple(uses)


def _use(layers: LayerCollection, layer_id: str, source: Source, rule: LayerRule, module: nn.Module) -> Use:
    """What a source contributes to a layer."""
    local_names = {full: local for local, full in source.names.items()}
    sizes = [math.prod(shape) for shape in layers[layer_id].parameter_shapes().values()]
    ends = list(accumulate(sizes, initial=0))
    held = {
        local_names[full]: slice(start, end)
        for full, (start, end) in zip(layers.parameter_names[layer_id], pairwise(ends), strict=True)
        if full in local_names
    }
    if list(held) != [name for name in source.names if name in held]:
        raise UnsupportedLayerError(
            f"layer '{layer_id}' lists the parameters of '{source.path}' as {list(held)}, its rule as {list(source.names)}; "
            "build the layer collection with LayerCollection.from_model"
        )
    return Use(module, source.path, rule, layer_id, tuple(held), tuple(held.values()), ends[-1])
