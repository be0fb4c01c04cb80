"""Autocast: the model runs under the caller's, everything else without."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

__all__ = ["autocast_set_aside", "callers_autocast"]

_CALLERS: ContextVar[torch.dtype | None] = ContextVar("nngeo_callers_autocast", default=None)
"""The dtype of the autocast that the caller is in, while it is set aside."""


@contextmanager
def autocast_set_aside(device: torch.device) -> Iterator[None]:
    """Compute in the dtypes of the operands: sums over examples under autocast would be rounded to bfloat16."""
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    token = _CALLERS.set(torch.get_autocast_dtype(device.type))
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _CALLERS.reset(token)


def callers_autocast(device: torch.device) -> AbstractContextManager[None]:
    """The autocast that was set aside, for calls of the model.

    No weight that was cast is kept for later calls, as torch would: the same parameter may next carry a tangent, or a graph.
    """
    dtype = _CALLERS.get()
    if dtype is None:
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype, cache_enabled=False)
    return context
