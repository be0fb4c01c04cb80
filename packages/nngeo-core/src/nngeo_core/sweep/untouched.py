"""Leaving the user's model and process as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
from torch import nn

__all__ = ["undisturbed"]


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a computation that leaves no trace, whatever mode the caller is in and also when an exception ends it.

    Restored on leaving: the model's buffers, and the global random states of torch (CPU and `device`), numpy and Python.
    (Iterating a DataLoader draws a seed from torch's global generator, and data sets draw augmentations from any of them.)
    A caller's `inference_mode` is left for the duration, so that results can take part in autograd.
    """
    with torch.inference_mode(False), _restored_random_states(device), _restored_buffers(model):
        yield


@contextmanager
def _restored_random_states(device: torch.device) -> Iterator[None]:
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    accelerators = [] if device.type == "cpu" else [device]
    try:
        with torch.random.fork_rng(accelerators, device_type=device.type if accelerators else "cuda"):
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


@contextmanager
def _restored_buffers(model: nn.Module) -> Iterator[None]:
    """Copy every buffer; on leaving, put back the ones that were written to, replaced or added."""
    kept = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    copies = [
        (buffer, buffer.detach().clone()) for _, buffers in kept for buffer in buffers.values() if buffer is not None
    ]
    try:
        yield
    finally:
        for buffers, before in kept:
            buffers.clear()
            buffers.update(before)
        for buffer, values in copies:
            if not torch.equal(buffer, values):  # version counters do not see writes to `.data`
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(values)
