"""What tells one computation from another: digests of parameters and batches, and what a likelihood is made of."""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from nngeo_core.layers.description import identify_layers
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.storage import tensor_bytes
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.examples import Batch
from nngeo_core.sweep.generator import Generator

__all__ = ["batch_digest", "computation", "first_difference"]


def computation(generator: Generator, accumulators: Sequence[Accumulator]) -> dict[str, Any]:
    """What two runs must have in common for one to go on where the other stopped, in a form that JSON keeps."""
    return {
        "the layers": identify_layers(generator.layer_collection),
        "the representations": [sums.identity() for sums in accumulators],
        "the likelihood": _described(generator.likelihood),
        "the function": _described(generator.function),
        "the dtypes": {name: str(one.dtype) for name, one in generator.model.named_parameters()},
        "the parameters and buffers": _model_digest(generator.model),
    }


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In words, the first thing in which two computations differ; empty if they do not."""
    for what in here:
        path, mine, theirs = _innermost(here[what], there.get(what))
        if mine != theirs:
            return f"{what}{path}: {_short(theirs)} there, {_short(mine)} here"
    return ""


def batch_digest(batch: Batch) -> str:
    """SHA-256 of all that is in a batch."""
    state = sha256()
    _add(state.update, batch)
    return state.hexdigest()


def _add(update: Callable[[Any], None], value: Any) -> None:
    """Each part after a word that says what it is, so that different batches make different texts."""
    if isinstance(value, Tensor):
        update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        update(tensor_bytes(value))
    elif isinstance(value, Mapping | tuple | list):
        parts = list(value.items()) if isinstance(value, Mapping) else list(value)
        update(f"{len(parts)} parts ".encode())
        for part in parts:
            _add(update, part)
    elif isinstance(value, str | bytes | int | float | None):
        update(f"{value!r} ".encode())
    else:
        update(f"{type(value).__qualname__} ".encode())  # objects may be written with their addresses


def _model_digest(model: nn.Module) -> str:
    return batch_digest({**dict(model.named_parameters()), **dict(model.named_buffers())})


def _described(value: Any) -> Any:
    """A likelihood by its class and attributes, a function by its name, a tensor by its digest."""
    if isinstance(value, Likelihood):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        parts = sorted(vars(value).items())
        return {"class": kind, **{name: _described(part) for name, part in parts if name != "stream"}}
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, tuple | list):
        return [_described(part) for part in value]
    if isinstance(value, Tensor):
        return batch_digest(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def _innermost(value: Any, other: Any, path: str = "") -> tuple[str, Any, Any]:
    """Where two values differ first, and what they are there; the values themselves if they do not."""
    if isinstance(value, dict) and isinstance(other, dict):
        pairs = [(f" ({key})", value.get(key), other.get(key)) for key in [*value, *other]]
    elif isinstance(value, list) and isinstance(other, list):
        pairs = [(path, *pair) for pair in zip_longest(value, other)]
    else:
        return path, value, other
    return next(
        (_innermost(mine, theirs, name) for name, mine, theirs in pairs if mine != theirs), (path, value, other)
    )


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
