"""Models inside wrappers that run them on several processes."""

import sys
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from nngeo_core.errors import UnsupportedOperationError

__all__ = ["inside", "unwrapped"]


def inside(model: nn.Module) -> nn.Module:
    """The model in its wrappers for several processes or devices, if it has any; unlike `unwrapped`, FSDP is not refused."""
    while isinstance(model, DistributedDataParallel | DataParallel):
        model = model.module
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that is inside `DistributedDataParallel`, which is not asked to reduce anything; any other model itself.

    Raises:
        UnsupportedOperationError: The model's parameters are in pieces on several processes, as under FSDP.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> unwrapped(nn.DataParallel(model)) is model
        True
    """
    model = inside(model)
    pieces = _pieces(model)
    if pieces:
        raise UnsupportedOperationError(
            f"{pieces}: no process holds whole parameters, and a matrix about them cannot be sharded yet. Build the model "
            "without it on each process, load the full state into that "
            "(torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True), and give "
            "distributed=True, which shares out the examples"
        )
    return model


def _pieces(model: nn.Module) -> str:
    """Which part of the model is sharded; nothing is imported to find out: what was not imported was not used."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    kinds = tuple(filter(None, (getattr(fsdp, name, None) for name in ("FullyShardedDataParallel", "FSDPModule"))))
    for path, module in model.named_modules() if kinds else ():
        if isinstance(module, kinds):
            return f"module '{path}' is sharded by FSDP"
    tensor: Any = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    for name, parameter in model.named_parameters() if tensor is not None else ():
        if isinstance(parameter, tensor) or isinstance(parameter.data, tensor):
            return f"parameter '{name}' is a DTensor"
    return ""
