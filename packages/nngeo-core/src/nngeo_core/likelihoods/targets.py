"""Where the targets of a batch are, and what tells one example from another."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

__all__ = ["digests", "targets_of", "tensors"]


def targets_of(examples: Any) -> Any:
    """The targets of a batch: the second of a tuple or list, `labels` of a mapping; a tensor, or a structure of tensors.

    Raises:
        ValueError: There are none.
    """
    targets = None
    if isinstance(examples, Mapping):
        targets = examples.get("labels")
    elif isinstance(examples, tuple | list) and len(examples) > 1:
        targets = examples[1]
    if not tensors(targets):
        raise ValueError(
            f"this likelihood needs targets, and the batch has none: got {type(examples).__name__}, expected "
            "(inputs, targets) or a mapping with 'labels'"
        )
    return targets


def tensors(examples: Any) -> list[Tensor]:
    """Every tensor in a batch, in order."""
    if isinstance(examples, Tensor):
        return [examples]
    parts = (
        examples if isinstance(examples, tuple | list) else examples.values() if isinstance(examples, Mapping) else ()
    )
    found: list[Tensor] = []
    for part in parts:
        found += [part] if isinstance(part, Tensor) else tensors(part)
    return found


def digests(examples: Any) -> Tensor:
    """A number for each example that depends on its content alone: int64, shape (n,), on the device of the first tensor.

    It is the same in every pass over the data, in whatever order and company the example comes, and whatever the order of a
    mapping's keys. What is no tensor is no part of it; zeros of either sign are the same.
    """
    found = tensors(_in_order_of_names(examples))
    rows = [_rows(tensor) for tensor in found]
    numbers = [_digest(parts) for parts in zip(*rows, strict=True)]
    return torch.tensor(numbers, dtype=torch.int64, device=found[0].device)


def _in_order_of_names(examples: Any) -> Any:
    if isinstance(examples, Mapping):
        return [_in_order_of_names(examples[key]) for key in sorted(examples, key=str)]
    return [_in_order_of_names(part) for part in examples] if isinstance(examples, tuple | list) else examples


def _rows(tensor: Tensor) -> list[bytes]:
    whole = tensor.detach().cpu().contiguous()
    whole = whole + 0.0 if whole.is_floating_point() else whole  # -0.0 has other bytes
    if not len(whole):
        return []
    data = whole.reshape(len(whole), -1).view(torch.uint8).numpy()
    return [row.tobytes() for row in data]


def _digest(parts: tuple[bytes, ...]) -> int:
    state = blake2b(digest_size=8)
    for part in parts:
        state.update(part)
    return int.from_bytes(state.digest(), "little", signed=True)
