"""What nngeo-generators registers: the hook-based generator and the built-in layer rules."""

from nngeo_core.layers.rule import LayerRule
from nngeo_core.plugins import hookimpl
from nngeo_core.sweep.generator import Generator
from nngeo_generators.hooks import HooksGenerator
from nngeo_generators.rules.conv import Conv2dRule
from nngeo_generators.rules.linear import LinearRule

__all__ = ["nngeo_generators", "nngeo_layer_rules"]


@hookimpl
def nngeo_generators() -> list[type[Generator]]:
    """Generators by name: `hooks`."""
    return [HooksGenerator]


@hookimpl
def nngeo_layer_rules() -> list[LayerRule]:
    """One rule for each built-in layer type."""
    return [Conv2dRule(), LinearRule()]
