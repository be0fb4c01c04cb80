"""The kernel of each layer alone."""

from collections.abc import Callable
from typing import Any

from torch import nn

from nngeo_core.jacobians.contraction import GramMethod
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.plugins import registry
from nngeo_ntk.kernels import compute_layer_kernels
from nngeo_ntk.stored import StoredKernel

__all__ = ["layer_kernels"]


def layer_kernels(
    model: nn.Module,
    loader: Any,
    representation: str = "dense",
    function: Callable[..., Any] | None = None,
    layer_collection: LayerCollection | None = None,
    loader2: Any = None,
    *,
    method: GramMethod | None = None,
    progress: bool = False,
    memory_budget: int | None = None,
    check: str = "first-batch",
) -> dict[str, StoredKernel]:
    """K_l = J_l J_l^T for the parameters of each layer l, by layer id, from one sweep; they add up to the whole kernel.

    Takes and raises what `GramMatrix` does, for representations with stored entries: "dense", "blockdiag" or "trace".

    Example:
        >>> import torch
        >>> kernels = layer_kernels(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), torch.ones(3, 2))
        >>> list(kernels), kernels["1"].size()
        (['0', '1'], (1, 3, 1, 3))
    """
    kind = registry.representation(representation, kind="fmat")
    if not issubclass(kind, StoredKernel):
        raise TypeError(
            f"'{representation}' stores no entries to tell layers apart; use 'dense', 'blockdiag' or 'trace'"
        )
    generator = registry.generator("hooks")(
        model, "regression", function, layer_collection, None, None, memory_budget, check
    )
    found = compute_layer_kernels(generator, loader, loader2, kind.pairing, method, progress)
    return {layer_id: kind(generator, data, symmetric=loader2 is None) for layer_id, data in found.items()}
