"""The record of a layer whose parameters are a weight and perhaps a bias."""

from torch import Tensor, nn

from nngeo_core.layers.layer import ParameterLayer

__all__ = ["weight_and_bias"]


def weight_and_bias(module: nn.Module) -> ParameterLayer:
    """The module's weight, then its bias, as far as it has them.

    Example:
        >>> weight_and_bias(nn.LayerNorm(3, bias=False))
        ParameterLayer(shapes=(('weight', (3,)),))
    """
    held = {name: getattr(module, name, None) for name in ("weight", "bias")}
    return ParameterLayer(tuple((name, tuple(part.shape)) for name, part in held.items() if isinstance(part, Tensor)))
