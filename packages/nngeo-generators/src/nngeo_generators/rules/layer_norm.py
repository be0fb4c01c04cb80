"""Layer normalisation."""

import math

from torch import Tensor, nn

from nngeo_core.layers.rule import Call
from nngeo_generators.rules.normalization import NormalizationRule

__all__ = ["LayerNormRule"]


class LayerNormRule(NormalizationRule):
    """x_hat = (x - mean) / sqrt(variance + eps) over the last axes (Ba, Kiros & Hinton 2016).

    Each entry of the normalised axes is a channel, each index before them a position.
    """

    name = "layer-norm"
    module_types = (nn.LayerNorm,)

    def _normalized(self, module: nn.Module, call: Call) -> Tensor:
        assert isinstance(module, nn.LayerNorm)
        return nn.functional.layer_norm(call.tensor("input", 0), module.normalized_shape, eps=module.eps)

    def _example_axes(self, module: nn.Module) -> int:
        assert isinstance(module, nn.LayerNorm)
        return len(module.normalized_shape)

    def _by_position(self, module: nn.Module, values: Tensor) -> Tensor:
        assert isinstance(module, nn.LayerNorm)
        return values.reshape(*values.shape[:2], -1, math.prod(module.normalized_shape))
