"""GGN: the generalized Gauss-Newton matrix of a loss of the outputs."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nngeo_core.layers.collection import LayerCollection
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.choice import likelihood_for_loss
from nngeo_core.likelihoods.curvature import LossCurvature
from nngeo_core.likelihoods.empirical import Loss
from nngeo_core.matrices.choice import Representation
from nngeo_core.plugins import registry
from nngeo_core.sweep.checkpoint import checkpoint_in
from nngeo_core.sweep.processes import chosen_group, telling
from nngeo_core.verbs.sweep import swept

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["GGN"]


def GGN(
    model: nn.Module,
    loader: Any,
    representation: Representation | Sequence[Representation],
    n_output: int | None = None,
    variant: str | Likelihood | None = None,
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
    loss: Loss | None = None,
) -> Any:
    """The generalized Gauss-Newton matrix (1/n) sum_i J_i^T H_i J_i, H_i the Hessian of example i's loss in its outputs.

    It is the Hessian of the mean loss for a model that is linear in its parameters (Schraudolph 2002), and positive
    semi-definite for a loss that is convex in the outputs. Another loss makes it indefinite: it is exact in the
    representations that are linear in it (dense, block-diagonal, diagonal), and KFAC raises.

    Without a loss it is that of -log p of a likelihood, which is the Fisher matrix for every likelihood of this library
    (Martens 2020, section 9.2), and needs no targets: the metrics of `variant` are used as they are. The same holds for
    cross-entropy with label smoothing, whose Hessian is that of "classif_logits"; `loss` forms H_i, a matrix (c, c) for each
    example, by c backward passes through the loss alone.

    Args:
        model: As for `FIM`.
        loader: As for `FIM`; with a `loss`, its batches have targets: `(inputs, targets)`, or `labels`.
        representation: As for `FIM`.
        n_output: As for `FIM`.
        variant: The likelihood. None takes outputs of any shape, with a `loss`. Beside a loss, it says which positions count
            (padding, ignored pixels), and the targets of "causal_lm_logits" are the next tokens.
        device: As for `FIM`.
        function: As for `FIM`.
        layer_collection: As for `FIM`.
        progress: As for `FIM`.
        memory_budget: As for `FIM`.
        check: As for `FIM`.
        checkpoint: As for `FIM`.
        checkpoint_every: As for `FIM`.
        distributed: As for `FIM`.
        process_group: As for `FIM`.
        loss: Maps outputs (n, ...) and targets to one loss for each example, shape (n,), twice differentiable in the outputs
            and neither summed nor averaged over examples: `reduction="none"` in torch's losses.

    Returns:
        The matrix, or a list of them.

    Raises:
        ShapeError: The loss is not of shape (n,).
        ValueError: There are no targets for the loss, neither variant nor loss, or as for `FIM`.
        NonFiniteError: The Hessian of the loss has a NaN or an infinity.
        UnsupportedOperationError: The loss is not convex, and the representation takes no negative curvature (KFAC).

    Example:
        >>> model = nn.Linear(2, 1)
        >>> x, y = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([1.0, -1.0])
        >>> def squared_hinge(outputs, signs):
        ...     return (1 - signs * outputs[:, 0]).clamp(min=0).square()
        >>> GGN(model, (x, y), "diag", loss=squared_hinge).size()
        (3, 3)
    """
    group = chosen_group(distributed, process_group)
    with telling(group, "GGN"):
        inner = likelihood_for_loss(variant, loss)
        likelihood = inner if loss is None else LossCurvature(inner, loss)
        arguments = (model, likelihood, function, layer_collection, device, n_output, memory_budget, check)
        kept = checkpoint_in(checkpoint, checkpoint_every)
        return swept(lambda: registry.generator("hooks")(*arguments), loader, representation, progress, kept, group)
