"""Layers whose parameters are a weight and perhaps a bias: their record, and how they read as matrices."""

from operator import attrgetter

from torch import Tensor, nn

from nngeo_core.jacobians.layout import KroneckerLayout, matrix_layout
from nngeo_core.layers.layer import ParameterLayer

__all__ = ["weight_and_bias", "weight_layout"]


def weight_and_bias(module: nn.Module) -> ParameterLayer:
    """The module's weight, then its bias, as far as it has them.

    Example:
        >>> weight_and_bias(nn.LayerNorm(3, bias=False))
        ParameterLayer(shapes=(('weight', (3,)),))
    """
    held = {name: getattr(module, name, None) for name in ("weight", "bias")}
    return ParameterLayer(tuple((name, tuple(part.shape)) for name, part in held.items() if isinstance(part, Tensor)))


def weight_layout(
    module: nn.Module, names: tuple[str, ...], groups: int = 1, transposed: bool = False
) -> KroneckerLayout:
    """The layout of the named ones of a module's parameters: one with "weight" in its name, one without, or both.

    Example:
        >>> weight_layout(nn.Linear(3, 2), ("bias",))
        KroneckerLayout(groups=1, outputs=2, inputs=0, has_bias=True, leading_inputs=1)
    """
    shapes = {"weight" if "weight" in name else "bias": tuple(attrgetter(name)(module).shape) for name in names}
    return matrix_layout(shapes, groups, transposed)
