"""Models inside wrappers that run them on several processes."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from nngeo_core.errors import UnsupportedOperationError

__all__ = ["check_whole", "inside", "unwrapped"]


def inside(model: nn.Module) -> nn.Module:
    """The model in its wrappers for several processes or devices, if it has any; unlike `unwrapped`, FSDP is not refused."""
    while isinstance(model, DistributedDataParallel | DataParallel):
        model = model.module
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that is inside `DistributedDataParallel`, which is not asked to reduce anything; any other model itself.

    Raises:
        UnsupportedOperationError: The model's parameters are in pieces on several processes, as under FSDP, or a module with
            parameters was compiled by `torch.jit.script` or loaded by `torch.jit.load`.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> unwrapped(nn.DataParallel(model)) is model
        True
    """
    model = inside(model)
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # what was not imported was not used
    kinds = tuple(filter(None, (getattr(fsdp, name, None) for name in ("FullyShardedDataParallel", "FSDPModule"))))
    for path, module in model.named_modules():
        if isinstance(module, kinds):
            raise _in_pieces(f"module '{path}' is sharded by FSDP")
        compiled = isinstance(module, torch.jit.RecursiveScriptModule)  # type: ignore[attr-defined]
        if compiled and next(module.parameters(), None) is not None:
            raise UnsupportedOperationError(
                f"module '{path}' was compiled by torch.jit.script, or loaded by torch.jit.load, so that its calls cannot be "
                "seen; give the module that it was made from, with the same parameters (load_state_dict)"
            )
    check_whole(model.named_parameters())
    return model


def check_whole(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Raise where one of these parameters is in pieces on several processes.

    Raises:
        UnsupportedOperationError: Naming it.
    """
    tensor: Any = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    for name, parameter in named if tensor is not None else ():
        if isinstance(parameter, tensor) or isinstance(parameter.data, tensor):
            raise _in_pieces(f"parameter '{name}' is a DTensor, as under FSDP")


def _in_pieces(what: str) -> UnsupportedOperationError:
    return UnsupportedOperationError(
        f"{what}: no process holds whole parameters, and a matrix about them cannot be sharded yet. Build the model "
        "without it on each process, load the full state into that "
        "(torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True), and give "
        "distributed=True, which shares out the examples"
    )
