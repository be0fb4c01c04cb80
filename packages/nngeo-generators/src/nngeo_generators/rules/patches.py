"""Patches of images: what each output position of a convolution reads."""

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["cut_patches", "padded_input"]

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def padded_input(module: Convolution, x: Tensor) -> Tensor:
    """The tensor that the convolution really slides over: `x` with the module's padding, in its padding mode."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    sides: list[int] = []
    for k in reversed(range(len(module.kernel_size))):
        sides += _padding(module, k)
    return nn.functional.pad(x, sides, mode) if any(sides) else x


def _padding(module: Convolution, k: int) -> tuple[int, int]:
    """Before and after along the k-th axis."""
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        total = module.dilation[k] * (module.kernel_size[k] - 1)
        return total // 2, total - total // 2
    return int(module.padding[k]), int(module.padding[k])


def cut_patches(
    x: Tensor, groups: int, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The inputs of every output position.

    Patches lie in memory as (q, A, n, s), so that sums over examples and positions are one matrix product, and those of one
    example a batched one.

    Args:
        x: Padded input, shape (n, channels, *size).
        groups: q.
        kernel: Kernel size along each axis.
        stride: Step between output positions along each axis.
        dilation: Step between the pixels of the kernel along each axis.

    Returns:
        Shape (n, s, q, A) with A = channels of the group times pixels of the kernel, in the order of the weight.
    """
    axes = len(kernel)
    windows = x.unflatten(1, (groups, -1))
    for k in range(axes):
        windows = windows.unfold(3 + k, dilation[k] * (kernel[k] - 1) + 1, stride[k])[..., :: dilation[k]]
    # now (n, q, channel, *position, *pixel)
    positions, pixels = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
    patches = windows.permute(1, 2, *pixels, 0, *positions)
    stored: Tensor = patches.flatten(3 + axes).flatten(1, 1 + axes)  # (q, A, n, s)
    return stored.permute(2, 3, 0, 1)
