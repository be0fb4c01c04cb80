"""Transposed convolutions, as linear layers on patches of the input with zeros between its pixels."""

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.layers.layer import ConvTranspose2dLayer, Layer
from nngeo_generators.rules.conv import ConvRule
from nngeo_generators.rules.patches import cut_patches
from nngeo_generators.rules.weight_and_bias import weight_and_bias, weight_layout

__all__ = ["ConvTransposeRule"]


class ConvTransposeRule(ConvRule):
    """J = sum_s g_s (x) patch_s over output pixels s: a convolution with stride 1 and the kernel reversed.

    It slides over the input with stride - 1 zeros between neighbouring pixels and zeros around them, which say where the
    kernel meets no input (Dumoulin & Visin 2016, section 4).
    """

    name = "conv-transpose"
    module_types = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

    def describe(self, module: nn.Module) -> Layer:
        """Weight (in_channels, out_channels / groups, *kernel_size), then bias."""
        if not isinstance(module, nn.ConvTranspose2d):
            return weight_and_bias(module)
        height, width = module.kernel_size
        return ConvTranspose2dLayer(
            module.in_channels, module.out_channels, (height, width), module.bias is not None, module.groups
        )

    def _layout(self, module: _ConvNd, names: tuple[str, ...]) -> KroneckerLayout:
        return weight_layout(module, names, module.groups, transposed=True)

    def _patches(self, module: _ConvNd, x: Tensor, size: tuple[int, ...]) -> Tensor:
        stuffed = _surrounded(module, _stuffed(x, module.stride), size)
        patches = cut_patches(stuffed, module.groups, module.kernel_size, [1] * len(size), module.dilation)
        by_pixel = patches.unflatten(3, (module.in_channels // module.groups, -1))
        reversed_pixels: Tensor = by_pixel.flip(4).flatten(3)
        return reversed_pixels


def _stuffed(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """`x` with stride - 1 zeros between neighbouring pixels."""
    sizes = ((length - 1) * step + 1 for length, step in zip(x.shape[2:], stride, strict=True))
    stuffed = x.new_zeros(*x.shape[:2], *sizes)
    stuffed[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
    return stuffed


def _surrounded(module: _ConvNd, x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Padded, or cropped, so that a kernel with stride 1 meets each pixel of the output: also those of output padding."""
    sides: list[int] = []
    for k in reversed(range(len(size))):
        reach = module.dilation[k] * (module.kernel_size[k] - 1)
        before = reach - int(module.padding[k])
        sides += [before, size[k] + reach - before - x.shape[2 + k]]
    return nn.functional.pad(x, sides)
