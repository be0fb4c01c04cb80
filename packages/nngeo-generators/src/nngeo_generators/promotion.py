"""Promotion: a layer that its modules' calls do not show exactly is taken up, step by step, by the modules around it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.layers.collection import LayerCollection
from nngeo_generators.network import Network
from nngeo_generators.plan import Use
from nngeo_generators.rules.generic import GenericRule
from nngeo_generators.stand_in import StandInRule

__all__ = ["promote"]


def promote(
    plan: Sequence[Use], layer_id: str, reason: str, network: Network, layers: LayerCollection
) -> tuple[Use, ...]:
    """The plan with one layer differentiated the generic way: by its own module first, then by the parents.

    The last one is not the model but the function of its outputs, which may use parameters outside of the model's call.

    Args:
        plan: All uses of all layers.
        layer_id: The layer whose Jacobian was found wrong.
        reason: Why, for the error.
        network: The model and the function of its outputs.
        layers: The layers.

    Raises:
        UnsupportedLayerError: Not even the whole model, run on single examples, gives the right derivative.
    """
    uses = [use for use in plan if use.layer_id == layer_id]
    others = tuple(use for use in plan if use.layer_id != layer_id)
    first = uses[0]
    if len(uses) == 1 and (first.rule.structured or isinstance(first.rule, StandInRule)):
        return (*others, replace(first, rule=GenericRule(subtree=first.rule.claims_subtree)))
    if first.module is network:
        raise UnsupportedLayerError(
            f"layer '{layer_id}' has no exact derivative here, not even from the whole model on single examples: {reason}. "
            "Mend the model, or leave this layer out of the layer collection"
        )
    path = _parent([use.path for use in uses])
    module, prefix = (network.model.get_submodule(path), f"{path}.") if path else (network, "")
    names = tuple(name.removeprefix(prefix) if path else f"model.{name}" for name in layers.parameter_names[layer_id])
    numel = first.layer_numel
    return (*others, Use(module, path, GenericRule(subtree=True), layer_id, names, (slice(0, numel),), numel))


def _parent(paths: Sequence[str]) -> str:
    """The deepest module around all of them, and not one of them."""
    parts = [path.split(".") for path in paths]
    common = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))]
    return ".".join(common[:-1] if len(paths) == 1 or ".".join(common) in paths else common)
