"""Jacobian: the derivative of a model's outputs at examples, as a map from parameter space to function space."""

from collections.abc import Callable
from inspect import isabstract
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nngeo_core.layers.collection import LayerCollection
from nngeo_core.matrices.maps import PushForward
from nngeo_core.plugins import registry
from nngeo_core.sweep.processes import chosen_group, telling
from nngeo_core.verbs.sweep import shared_generator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Jacobian"]


def Jacobian(
    model: nn.Module,
    loader: Any,
    representation: str | type[PushForward] = "implicit",
    function: Callable[..., Any] | None = None,
    layer_collection: LayerCollection | None = None,
    *,
    device: torch.device | str | None = None,
    progress: bool = False,
    memory_budget: int | None = None,
    check: str = "first-batch",
    distributed: bool = False,
    process_group: "ProcessGroup | None" = None,
) -> PushForward:
    """J[c, n] = d f(x_n)_c / d theta as an operator: `J @ v`, `J.T @ u`, `K = J @ J.T`, `F = J.T @ J / n`.

    Args:
        model: The network, in evaluation mode if it has dropout or batch normalisation; it is left untouched.
        loader: A loader of batches, or one batch; read once.
        representation: A registered name or a class: "implicit" (products, nothing stored) or "dense" (c, n, d).
        function: Maps a batch to outputs (n, ...); see `GramMatrix`.
        layer_collection: The parameters to differentiate; None takes all of the model.
        device: The model's device, to which batches are moved; None takes it from the model.
        progress: Whether to show a progress bar.
        memory_budget: Bytes that the tensors kept for some examples may take together, in a sweep or a product: batches
            beyond it are cut. None for the generator's default, 1 GiB.
        check: When the result is compared with a plain gradient pass: "first-batch", "every-batch" or "off".
        distributed: Whether the processes of torch.distributed's default group, each with examples of its own, share the
            computation: the examples of all of them, those of the first process first, and the same on each.
        process_group: The same for another group.

    Raises:
        PluginError: The name is unknown, or the package that provides it (nngeo-ntk) is not installed.
        UnsupportedLayerError: Some derivative cannot be computed exactly; names the module.
        ShapeError, ValueError: The batches, outputs or options do not fit together.

    Example:
        >>> from nngeo_core import PVector
        >>> model = nn.Linear(2, 1, bias=False)
        >>> J = Jacobian(model, torch.tensor([[3.0, 4.0]]))
        >>> (J @ PVector(J.layer_collection, vector_repr=torch.tensor([1.0, 10.0]))).vector_repr
        tensor([[43.]])
    """
    group = chosen_group(distributed, process_group)
    arguments = (model, "regression", function, layer_collection, device, None, memory_budget, check)
    with telling(group, "Jacobian"):
        kind, generator = shared_generator(lambda: _representation(representation), arguments, (loader,), group)
        found: PushForward = kind(generator, examples=loader, progress=progress)
    return found


def _representation(choice: object) -> Any:
    if isinstance(choice, str):
        return registry.representation(choice, kind="push_forward")
    if isinstance(choice, type) and issubclass(choice, PushForward) and not isabstract(choice):
        return choice
    raise TypeError(
        f"representation is a name or a concrete PushForward class; got {choice!r}. "
        f"Known names: {', '.join(registry.names('representations', kind='push_forward'))}"
    )
