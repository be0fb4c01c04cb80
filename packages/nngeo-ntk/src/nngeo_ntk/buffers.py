"""Buffers: where a kernel may be written, and what is asked of one that the caller gives."""

import math
from typing import Any, TypeAlias

import numpy
import torch
from torch import Tensor

from nngeo_core.errors import ShapeError

__all__ = ["Buffer", "empty_kernel"]

Buffer: TypeAlias = Tensor | numpy.ndarray[Any, Any]
"""Where a kernel may be written: a tensor, or an array such as a numpy memory map."""


def empty_kernel(
    buffer: Buffer | None,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    what: str = "the kernel",
) -> Tensor:
    """Room for a kernel, whatever it holds: the caller's buffer as a tensor, or a new one.

    Args:
        buffer: The caller's; None for a new tensor.
        shape: That of the kernel.
        dtype: In which it is computed.
        device: Of a new tensor.
        what: The kernel, for errors.

    Raises:
        TypeError: The buffer is neither a tensor nor an array that torch can write to, or its dtype would lose digits.
        ShapeError: It has another shape.
        ValueError: It is read-only, or several entries share one place in memory.
        MemoryError: There is no room for a new one.
    """
    if buffer is None:
        return _new(shape, dtype, device)
    tensor = _from_array(buffer) if isinstance(buffer, numpy.ndarray) else buffer
    if not isinstance(tensor, Tensor):
        raise TypeError(f"out is a tensor or a numpy array (such as a memory map), got {type(buffer).__name__}")
    if tensor.shape != shape:
        raise ShapeError(
            f"the buffer has shape {tuple(tensor.shape)}, and {what} has shape {shape}; give out=empty{shape}"
        )
    if torch.promote_types(tensor.dtype, dtype) != tensor.dtype or not tensor.is_floating_point():
        raise TypeError(
            f"the buffer is {tensor.dtype} and would lose digits of a kernel in {dtype}; give one in {dtype}"
        )
    if _overlaps(tensor):
        raise ValueError(
            f"several entries of the buffer share one place in memory (its strides are {tensor.stride()}), as expand makes "
            f"them; give out=empty{shape}"
        )
    return tensor.detach()


def _overlaps(tensor: Tensor) -> bool:
    """Whether an axis steps into what the axes with smaller steps reach."""
    reach = 1
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and step < reach:
            return True
        reach += step * (size - 1)
    return False


def _from_array(array: numpy.ndarray[Any, Any]) -> Tensor:
    """The same memory as a tensor, through which it may be written to."""
    if not array.flags.writeable:
        raise ValueError(
            "the buffer is read-only and would be overwritten; open a memory map with mode='r+' (or 'w+', a new one), or give "
            "a writeable array. To use numbers that are there already, read them: FMatDense(data=torch.tensor(array))"
        )
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the buffer is an array of dtype {array.dtype.str} and strides {array.strides}, which torch cannot write to "
            f"({error}); give a contiguous one in the machine's own byte order"
        ) from error


def _new(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as error:
        raise MemoryError(
            f"a kernel of shape {shape} takes {math.prod(shape) * dtype.itemsize / 2**30:.0f} GiB, and there is less; give out="
            " a numpy memory map, or take 'implicit', 'trace' or 'blockdiag'"
        ) from error
