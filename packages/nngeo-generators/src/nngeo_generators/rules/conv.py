"""Convolutions, as linear layers on patches."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers.layer import Conv2dLayer, Layer
from nngeo_core.layers.rule import Call, LayerRule
from nngeo_generators.rules.patches import cut_patches, padded_input
from nngeo_generators.rules.weight_and_bias import weight_and_bias, weight_layout

__all__ = ["ConvRule"]

AXES = {1: "length", 2: "height, width", 3: "depth, height, width"}


class ConvRule(LayerRule):
    """J = sum_s g_s (x) patch_s over output pixels s, one Kronecker structure per group (Grosse & Martens 2016)."""

    name = "conv"
    module_types: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def describe(self, module: nn.Module) -> Layer:
        """Weight (out_channels, in_channels / groups, *kernel_size), then bias."""
        if not isinstance(module, nn.Conv2d):
            return weight_and_bias(module)
        height, width = module.kernel_size
        return Conv2dLayer(
            module.in_channels, module.out_channels, (height, width), module.bias is not None, module.groups
        )

    def structure(self, module: nn.Module, names: tuple[str, ...]) -> Structure:
        """Patches times output gradients, in each group."""
        assert isinstance(module, _ConvNd)
        return Structure(self._layout(module, names))

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor, names: tuple[str, ...]
    ) -> KroneckerJacobian:
        """`a` are the patches of the padded input, cut when first needed."""
        assert isinstance(module, _ConvNd)
        x, axes = call.tensor("input", 0), len(module.kernel_size)
        if x.ndim != axes + 2:
            raise UnsupportedLayerError(
                f"'{call.path}' was called on one image of shape {tuple(x.shape)}; expected (n, channels, {AXES[axes]})"
            )
        g = output_gradients.flatten(3).unflatten(2, (module.groups, -1)).permute(0, 1, 4, 2, 3)
        layout = self._layout(module, names)
        if "weight" not in names:
            return KroneckerJacobian(x.new_zeros(g.shape[1], g.shape[2], module.groups, 0), g, layout)
        size = output_gradients.shape[3:]
        return KroneckerJacobian(lambda: call.once("patches", lambda: self._patches(module, x, size)), g, layout)

    def _layout(self, module: _ConvNd, names: tuple[str, ...]) -> KroneckerLayout:
        """Where weight and bias lie in the flat parameters."""
        return weight_layout(module, names, module.groups)

    def _patches(self, module: _ConvNd, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """What each pixel of an output of this size reads, shape (n, s, q, A) in the order of the weight."""
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        return cut_patches(padded_input(module, x), module.groups, module.kernel_size, module.stride, module.dilation)
