"""Leaving the user's model and process as they were."""

import random
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy
import torch
from torch import nn

from nngeo_core.sweep.autocast import autocast_set_aside

__all__ = ["undisturbed"]

_TURN = threading.RLock()
"""Held by the thread that computes: all threads share the modules, torch's switches and the global random states."""


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a computation that leaves no trace, whatever mode the caller is in and also when an exception ends it.

    Restored on leaving: the model's buffers, which parameters and modules it has, what those note of their calls, and the
    global random states of torch (CPU and `device`), numpy and Python. (Iterating a DataLoader draws a seed from torch's global
    generator, and data sets draw augmentations from any of them.) A caller's `inference_mode` is left for the duration, so
    that results can take part in autograd; so is the caller's autocast, which `Generator.outputs` enters again for the model.
    Compiled models run as they were written: hooks, forward mode and vmap do not reach into compiled code.

    Computations of several threads take turns. What another thread draws from the global generators meanwhile, it will draw
    again, since their states are put back; it is better off with a `torch.Generator` of its own.
    """
    with _TURN, ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        modules = tuple(model.modules())
        for restored in (
            autocast_set_aside(device),
            _restored_random_states(device),
            _uncompiled(),
            _restored_attributes(modules),
            _restored_buffers(modules),
        ):
            stack.enter_context(restored)
        yield


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Run what `torch.compile` returned eagerly; without the seconds of importing the compiler where nothing was compiled."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
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
def _restored_attributes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put back what modules note of their last call, such as attention weights: it would keep graphs alive or belong to vmap.

    Parameters, buffers and modules inside that were replaced or added are as before, too.
    """
    places = [place for one in modules for place in (vars(one), one._parameters, one._buffers, one._modules)]
    kept = [(place, dict(place)) for place in places if isinstance(place, dict)]
    scripted = [(one, dict(one._buffers)) for one in modules if isinstance(one, torch.jit.ScriptModule)]
    try:
        yield
    finally:
        for place, before in kept:
            place.clear()
            place.update(before)
        for one, buffers in scripted:  # TorchScript's are in no dictionary
            for name, buffer in buffers.items():
                if getattr(one, name) is not buffer:
                    setattr(one, name, buffer)


@contextmanager
def _restored_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Copy every buffer; on leaving, put the numbers back into those that were written to."""
    buffers = [buffer for module in modules for buffer in module._buffers.values() if buffer is not None]
    copies = [(buffer, buffer.detach().clone()) for buffer in buffers]
    try:
        yield
    finally:
        for buffer, values in copies:
            if not torch.equal(buffer, values):  # version counters do not see writes to `.data`
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(values)
