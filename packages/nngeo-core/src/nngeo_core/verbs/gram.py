"""GramMatrix: the finite-width neural tangent kernel of a model, in the representation asked for."""

from collections.abc import Callable
from inspect import isabstract
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import nn

from nngeo_core.layers.collection import LayerCollection
from nngeo_core.matrices.fmat import FMat
from nngeo_core.plugins import registry
from nngeo_core.sweep.processes import chosen_group, telling
from nngeo_core.verbs.sweep import shared_generator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["GramMatrix"]

Kernel = TypeVar("Kernel", bound=FMat)


@overload
def GramMatrix(model: nn.Module, loader: Any, representation: type[Kernel], *args: Any, **kwargs: Any) -> Kernel: ...
@overload
def GramMatrix(model: nn.Module, loader: Any, representation: str = ..., *args: Any, **kwargs: Any) -> FMat: ...
def GramMatrix(
    model: nn.Module,
    loader: Any,
    representation: str | type[FMat] = "dense",
    function: Callable[..., Any] | None = None,
    layer_collection: LayerCollection | None = None,
    loader2: Any = None,
    *,
    device: torch.device | str | None = None,
    method: str | None = None,
    out: Any = None,
    progress: bool = False,
    memory_budget: int | None = None,
    check: str = "first-batch",
    distributed: bool = False,
    process_group: "ProcessGroup | None" = None,
) -> FMat:
    """The neural tangent kernel K[c, n, k, m] = (d f(x_n)_c / d theta) . (d f(x_m)_k / d theta), exactly; not averaged.

    f may have outputs (n, ...) of any shape: c is the product of the axes after the first, row-major. Examples are read once,
    so that a loader may shuffle; the kernel's order is the one in which they came. (Jacot, Gabriel & Hongler 2018; Novak,
    Sohl-Dickstein & Schoenholz 2022.)

    Args:
        model: The network, in evaluation mode if it has dropout or batch normalisation; it is left untouched.
        loader: A loader of batches, or one batch: a tensor, a mapping, or a tuple of tensors of equal first dimension.
        representation: A registered name or a class: "dense" (c, n, c, n), "blockdiag" (one n x n block for each output),
            "trace" (n x n, averaged over outputs), "implicit" (products K u alone, nothing stored).
        function: Maps a batch to outputs (n, ...): `function(*batch)` for a tuple or list, else `function(batch)`. By
            default `model(batch[0])`, `model(batch)`, or `model(**batch)` without its labels.
        layer_collection: The parameters to differentiate; None takes all of the model.
        loader2: Examples of the columns of a cross kernel K(X1, X2); None for those of the rows.
        device: The model's device, to which batches are moved; None takes it from the model.
        method: Forces how layers are contracted: "positions", "gradients" or "products" (see
            `nngeo_core.jacobians.contraction.gram_costs`); None takes the cheapest order of each layer.
        out: A tensor or numpy memory map of the kernel's shape to compute in, for kernels larger than memory.
        progress: Whether to show a progress bar.
        memory_budget: Bytes that the Jacobians of one chunk of examples may take, and again those that are kept; beyond,
            Jacobians are computed again, tile by tile. None for 1 GiB.
        check: When the result is compared with a plain gradient pass: "first-batch", "every-batch" or "off".
        distributed: Whether the processes of torch.distributed's default group, each with examples of its own, share the
            computation: the examples of all of them, those of the first process first, and the same on each.
        process_group: The same for another group.

    Raises:
        PluginError: The name is unknown, or the package that provides it (nngeo-ntk) is not installed.
        UnsupportedLayerError: Some derivative cannot be computed exactly; names the module.
        ShapeError, ValueError: The batches, outputs, buffer or options do not fit together.
        NonFiniteError: The outputs have a NaN or an infinity; names batch and module.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> K = GramMatrix(model, torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
        >>> K.get_dense_tensor().view(2, 2)
        tensor([[25.,  3.],
                [ 3.,  1.]])
    """
    group = chosen_group(distributed, process_group)
    arguments = (model, "regression", function, layer_collection, device, None, memory_budget, check)
    loaders = (loader,) if loader2 is None else (loader, loader2)
    with telling(group, "GramMatrix"):
        kind, generator = shared_generator(lambda: _representation(representation), arguments, loaders, group)
        found: FMat = kind(generator, examples=loader, others=loader2, method=method, out=out, progress=progress)
    return found


def _representation(choice: object) -> Any:
    if isinstance(choice, str):
        return registry.representation(choice, kind="fmat")
    if isinstance(choice, type) and issubclass(choice, FMat) and not isabstract(choice):
        return choice
    raise TypeError(
        f"representation is a name or a concrete FMat class; got {choice!r}. "
        f"Known names: {', '.join(registry.names('representations', kind='fmat'))}"
    )
