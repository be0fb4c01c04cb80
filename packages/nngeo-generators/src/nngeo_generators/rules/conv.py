"""Convolutions, as linear layers on patches."""

from torch import Tensor, nn

from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.layers.layer import Conv2dLayer
from nngeo_core.layers.rule import Call, LayerRule
from nngeo_generators.rules.patches import cut_patches, padded_input

__all__ = ["Conv2dRule"]


class Conv2dRule(LayerRule):
    """J = sum_s g_s (x) patch_s over output pixels s, one Kronecker structure per group (Grosse & Martens 2016)."""

    name = "conv2d"
    module_types = (nn.Conv2d,)

    def describe(self, module: nn.Module) -> Conv2dLayer:
        """Weight (out_channels, in_channels / groups, *kernel_size), then bias."""
        assert isinstance(module, nn.Conv2d)
        height, width = module.kernel_size
        bias = module.bias is not None
        return Conv2dLayer(module.in_channels, module.out_channels, (height, width), bias, module.groups)

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor, names: tuple[str, ...]
    ) -> LayerJacobian:
        """`a` are the patches of the padded input, cut when first needed."""
        assert isinstance(module, nn.Conv2d)
        x = call.tensor("input", 0)
        if x.ndim != 4:
            raise UnsupportedLayerError(
                f"'{call.path}' was called on one image of shape {tuple(x.shape)}; expected (n, channels, height, width)"
            )
        g = output_gradients.flatten(3).unflatten(2, (module.groups, -1)).permute(0, 1, 4, 2, 3)
        if "weight" not in names:
            a = x.new_zeros(g.shape[1], g.shape[2], module.groups, 0)
            return KroneckerJacobian(a, g, KroneckerLayout(module.groups, g.shape[-1], 0, has_bias=True))
        width = module.weight[0].numel()
        layout = KroneckerLayout(module.groups, g.shape[-1], width, "bias" in names)
        return KroneckerJacobian(lambda: call.once("patches", lambda: _patches(module, x)), g, layout)


def _patches(module: nn.Conv2d, x: Tensor) -> Tensor:
    return cut_patches(padded_input(module, x), module.groups, module.kernel_size, module.stride, module.dilation)
