"""What counts as one batch, what as a loader, and how a model is called on a batch.

A tensor, a mapping, or a tuple or list of tensors of equal first dimension is one batch; anything else is a loader that
yields batches, whose elements may be nested.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nngeo_core.errors import ShapeError
from nngeo_core.likelihoods.targets import tensors

__all__ = [
    "Batch",
    "Counted",
    "call_model",
    "count_examples",
    "example_shapes",
    "is_one_batch",
    "iterate_batches",
    "map_tensors",
    "move_batch",
    "select_examples",
]

Batch: TypeAlias = Any
"""A tensor, or tuples, lists and mappings of tensors, all of them with the examples first."""


def iterate_batches(examples: Any) -> Iterator[Batch]:
    """The batches of a loader, or the one batch that `examples` is.

    Warns where that is a tuple or list of tensors that look like batches themselves, as `x.split(32)` returns: only its first
    tensor would be given to the model.

    Raises:
        TypeError: `examples` is neither.
    """
    if is_one_batch(examples):
        if _looks_like_batches(examples):
            warnings.warn(
                f"a {type(examples).__name__} of {len(examples)} tensors of shape {tuple(examples[0].shape)} is one batch, "
                "inputs first, then targets. If these are batches, give [(x,) for x in ...]; if it is one, [(x, y)] says so",
                stacklevel=2,
            )
        yield examples
        return
    if not isinstance(examples, Iterable) or isinstance(examples, str | bytes):
        raise TypeError(
            f"examples are one batch (a tensor, a mapping, or a tuple of tensors) or a loader that yields batches; "
            f"got {type(examples).__name__}"
        )
    yield from examples


def is_one_batch(examples: Any) -> bool:
    """Whether this is a tensor, a mapping, or a tuple or list of tensors of equal first dimension."""
    if isinstance(examples, Tensor | Mapping):
        return True
    if not isinstance(examples, tuple | list) or not examples:
        return False
    first = examples[0]
    return all(isinstance(part, Tensor) and part.shape[:1] == first.shape[:1] for part in examples)


def _looks_like_batches(examples: Batch) -> bool:
    """Whether one batch is three or more floating-point tensors that cannot be told from each other: two may be (x, y)."""
    if not isinstance(examples, tuple | list) or len(examples) < 3 or not examples[0].is_floating_point():
        return False
    return all(part.shape == examples[0].shape and part.dtype == examples[0].dtype for part in examples)


def count_examples(batch: Batch) -> int:
    """The first dimension of every tensor in the batch.

    Raises:
        ShapeError: The batch holds no tensor, or tensors of different first dimensions.
    """
    counts = {tensor.shape[:1] for tensor in tensors(batch)}
    if len(counts) != 1 or counts == {torch.Size([])}:
        shapes = [tuple(tensor.shape) for tensor in tensors(batch)]
        raise ShapeError(
            f"every tensor of a batch has the examples as its first dimension; got {type(batch).__name__} with tensors "
            f"of shapes {shapes}. Give a loader that yields such batches"
        )
    return counts.pop()[0]


class Counted:
    """The batches of an iterator, counting their examples.

    Attributes:
        n: How many examples were read.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.n = 0

    def any(self) -> bool:
        """Whether there are examples: reads as far as the first batch that has some, which comes first afterwards."""
        for batch in self._batches:
            if count_examples(batch):
                self._batches = chain([batch], self._batches)
                return True
        return False

    def __iter__(self) -> "Counted":
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.n += count_examples(batch)
        return batch


def example_shapes(batch: Batch) -> tuple[torch.Size, ...]:
    """The shapes of one example's tensors."""
    return tuple(tensor.shape[1:] for tensor in tensors(batch))


def map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor changed; other leaves stay as they are."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, tuple | list):
        parts = [map_tensors(part, change) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if isinstance(batch, Mapping):
        return {key: map_tensors(part, change) for key, part in batch.items()}
    return batch


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device, with tensors that were made under `inference_mode` replaced by ordinary copies."""

    def move(tensor: Tensor) -> Tensor:
        moved = tensor.to(device)
        return moved.clone() if moved.is_inference() else moved

    return map_tensors(batch, move)


def select_examples(batch: Batch, chosen: slice | Tensor) -> Batch:
    """Some examples of a batch, a slice or their numbers; what is no tensor goes along whole.

    Raises:
        ShapeError: The batch holds a list with one entry for each example, which cannot be told from a shared one.
    """
    n = count_examples(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    for part in parts:
        if n > 1 and isinstance(part, tuple | list) and len(part) == n and not tensors(part):
            raise ShapeError(
                f"the batch has a {type(part).__name__} with {n} entries for {n} examples; make it a tensor"
            )
    return map_tensors(batch, lambda tensor: tensor[chosen])


def call_model(model: nn.Module, function: Callable[..., Any] | None, batch: Batch) -> Tensor:
    """The outputs for a batch, examples first.

    With a function, `function(*batch)` for a tuple or list, else `function(batch)`. Without, `model(batch[0])`,
    `model(batch)`, or `model(**batch)` without its labels. Of an object or mapping that comes back, its `logits`.

    Raises:
        TypeError: What comes back is no tensor and has no logits.
    """
    if function is not None:
        result = function(*batch) if isinstance(batch, tuple | list) else function(batch)
    elif isinstance(batch, Mapping):
        result = model(**{key: part for key, part in batch.items() if key != "labels"})
    else:
        result = model(batch[0] if isinstance(batch, tuple | list) else batch)
    outputs = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", result)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the model returned {type(result).__name__}, expected one tensor or an object with `logits`; "
            "give a `function` that returns the tensor of outputs"
        )
    return outputs
