"""FIM: the Fisher information matrix of a model, in the representation asked for."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import nn

from nngeo_core.layers.collection import LayerCollection
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.matrices.choice import Representation
from nngeo_core.matrices.pmat import PMat
from nngeo_core.plugins import registry
from nngeo_core.sweep.checkpoint import checkpoint_in
from nngeo_core.sweep.processes import chosen_group, telling
from nngeo_core.verbs.sweep import swept

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["FIM"]

Matrix = TypeVar("Matrix", bound=PMat)


@overload
def FIM(model: nn.Module, loader: Any, representation: type[Matrix], *args: Any, **kwargs: Any) -> Matrix: ...
@overload
def FIM(
    model: nn.Module, loader: Any, representation: str | Mapping[Any, str | type[PMat]], *args: Any, **kwargs: Any
) -> PMat: ...
@overload
def FIM(
    model: nn.Module, loader: Any, representation: Sequence[Representation], *args: Any, **kwargs: Any
) -> list[PMat]: ...
def FIM(
    model: nn.Module,
    loader: Any,
    representation: Representation | Sequence[Representation],
    n_output: int | None = None,
    variant: str | Likelihood = "classif_logits",
    device: torch.device | str | None = None,
    function: Callable[..., Any] | None = None,
    layer_collection: LayerCollection | None = None,
    progress: bool = False,
    memory_budget: int | None = None,
    check: str = "first-batch",
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    distributed: bool = False,
    process_group: "ProcessGroup | None" = None,
) -> PMat | list[PMat]:
    """The Fisher information matrix F = (1/n) sum_i J_i^T L_i J_i, exactly: no sampling of targets.

    J_i is the Jacobian of the outputs of example i, L_i the metric of the likelihood on them, for `classif_logits`
    diag(p) - p p^T with p = softmax(outputs). F is averaged over examples and summed over outputs (Amari 1998; Martens 2020).

    Args:
        model: The network, in evaluation mode if it has dropout or batch normalisation; it is left untouched.
        loader: A loader of batches, or one batch: a tensor, a mapping, or a tuple of tensors of equal first dimension.
        representation: A registered name (`"kfac"`), a class (`PMatKFAC`); a mapping from layers to those,
            `{nn.Linear: "kfac", "head.*": "dense", None: "diag"}`, or `"auto"`, as `PMatMixed` says; or a list of any of
            them, for one sweep over the data.
        n_output: The number of classes or values, checked against the model; None takes what the first batch shows.
        variant: The likelihood: a registered name (`"classif_logits"`, `"regression"`) or an object.
        device: The model's device, to which batches are moved; None takes it from the model.
        function: Maps a batch to outputs (n, ...): `function(*batch)` for a tuple or list, else `function(batch)`. By
            default `model(batch[0])`, `model(batch)`, or `model(**batch)` without its labels.
        layer_collection: The parameters to differentiate; None takes all of the model.
        progress: Whether to show a progress bar for each pass over the data.
        memory_budget: Bytes that the tensors kept for some examples may take together, in a sweep or a product: batches
            beyond it are cut. None for the generator's default, 1 GiB.
        check: When the result is compared with a plain gradient pass: "first-batch", "every-batch" or "off".
        checkpoint: A folder where the sums are written on the way. Killed and started again with the same arguments and a
            loader that gives the same batches, the computation goes on from there; once it is done, the file is removed.
        checkpoint_every: How many batches lie between two writings; small ones are run together within these only.
        distributed: Whether the processes of torch.distributed's default group, each with `loader` of its own, share the
            computation: sums over all their examples, the same on each of them.
        process_group: The same for another group.

    Returns:
        The matrix, or a list of matrices in the order of `representation`.

    Raises:
        PluginError: A name is unknown, or the package that provides it is not installed.
        UnsupportedLayerError: Some derivative cannot be computed exactly; names the module.
        ShapeError, ValueError: The batches, outputs or options do not fit together.
        StorageError: The checkpoint is of another computation, naming what differs.
        NonFiniteError: The outputs have a NaN or an infinity; names batch and module.
        DistributedError: The processes compute different things, or another one failed, is gone or hangs.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> x = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
        >>> F = FIM(model, x, "dense", n_output=3)
        >>> F.size(), F.n_examples
        ((9, 9), 2)
    """
    group = chosen_group(distributed, process_group)
    with telling(group, "FIM"):
        arguments = (model, variant, function, layer_collection, device, n_output, memory_budget, check)
        kept = checkpoint_in(checkpoint, checkpoint_every)
        return swept(lambda: registry.generator("hooks")(*arguments), loader, representation, progress, kept, group)
