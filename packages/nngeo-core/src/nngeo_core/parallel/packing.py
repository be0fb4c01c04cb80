"""Tensors side by side in one buffer, to be sent at once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

__all__ = ["Bucket", "Packed", "decoded", "described", "encoded", "in_buckets", "number_of", "pack", "unpack"]

BUCKET_BYTES = 2**25
"""Up to which tensors are copied together: larger ones gain nothing by it."""


@dataclass(frozen=True)
class Bucket:
    """Some tensors of one dtype and device, and a flat buffer of their values; of a large one, its own memory."""

    tensors: Sequence[Tensor]
    buffer: Tensor

    def unpack(self) -> None:
        """Copy the buffer's values back to the tensors."""
        parts = self.buffer.split([tensor.numel() for tensor in self.tensors])
        for tensor, part in zip(self.tensors, parts, strict=True):
            if tensor.data_ptr() != part.data_ptr():
                tensor.copy_(part.view(tensor.shape))


def in_buckets(tensors: Mapping[str, Tensor]) -> Iterator[Bucket]:
    """The tensors in the order of their names: small neighbours of one dtype together, and large ones alone."""
    waiting: list[Tensor] = []
    for _, tensor in sorted(tensors.items()):
        size = sum(one.nbytes for one in waiting)
        if waiting and (tensor.dtype != waiting[0].dtype or size + tensor.nbytes > BUCKET_BYTES):
            yield _bucket(waiting)
            waiting = []
        waiting.append(tensor)
    if waiting:
        yield _bucket(waiting)


def _bucket(tensors: list[Tensor]) -> Bucket:
    if len(tensors) == 1 and tensors[0].is_contiguous():
        return Bucket(tensors, tensors[0].detach().view(-1))
    return Bucket(tensors, torch.cat([tensor.detach().flatten() for tensor in tensors]))


@dataclass(frozen=True)
class Packed:
    """What travels from process to process: a text as bytes, and tensors as bytes.

    Attributes:
        header: uint8, on the CPU.
        data: uint8, on the tensors' device.
    """

    header: Tensor
    data: Tensor


def pack(value: Any, tensors: Sequence[Tensor], device: torch.device) -> Packed:
    """A value that JSON keeps, and some tensors."""
    text = encoded([value, [described(tensor) for tensor in tensors]])
    parts = [_padded(tensor.detach().contiguous().reshape(-1).view(torch.uint8)) for tensor in tensors]
    nothing = torch.zeros(1, dtype=torch.uint8, device=device)  # which all the same is sent: nobody waits for less
    return Packed(text, torch.cat(parts) if parts else nothing)


def unpack(packed: Packed) -> tuple[Any, list[Tensor]]:
    """What `pack` took, the tensors in the packed memory."""
    value, descriptions = decoded(packed.header)
    tensors, start = [], 0
    for shape, name in descriptions:
        dtype = getattr(torch, name)
        stop = start + dtype.itemsize * torch.Size(shape).numel()
        tensors.append(packed.data[start:stop].view(dtype).view(shape))
        start = stop + -stop % _ALIGNED
    return value, tensors


def encoded(value: Any) -> Tensor:
    """A value that JSON keeps, as bytes of its text: uint8, on the CPU."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def decoded(text: Tensor) -> Any:
    """What `encoded` took."""
    return json.loads(text.numpy().tobytes().decode())


def described(tensor: Tensor) -> list[Any]:
    """A tensor's shape and the name of its dtype, as JSON keeps them."""
    return [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]


def _padded(data: Tensor) -> Tensor:
    return torch.nn.functional.pad(data, (0, -len(data) % _ALIGNED))


def number_of(data: bytes | memoryview) -> int:
    """A number of 63 bits that stands for some bytes."""
    return int.from_bytes(sha256(data).digest()[:8], "little") >> 1


_ALIGNED = 64
"""Bytes at whose multiples tensors begin."""
