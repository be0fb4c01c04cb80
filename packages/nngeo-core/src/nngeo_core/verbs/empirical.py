"""EmpiricalFIM: the second moment, or covariance, of the gradients of each example's loss."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nngeo_core.layers.collection import LayerCollection
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.choice import likelihood_for_loss
from nngeo_core.likelihoods.empirical import Empirical, Loss
from nngeo_core.matrices.choice import Representation
from nngeo_core.plugins import registry
from nngeo_core.sweep.checkpoint import checkpoint_in
from nngeo_core.sweep.processes import chosen_group, telling
from nngeo_core.verbs.sweep import swept

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["EmpiricalFIM"]


def EmpiricalFIM(
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
    centred: bool = False,
) -> Any:
    """The empirical Fisher matrix (1/n) sum_i g_i g_i^T, with g_i the gradient of example i's loss at its own target.

    One direction for each example. It is not the Fisher matrix, whose targets come from the model (Kunstner, Balles & Hennig
    2019). With `centred=True` it is the covariance (1/n) sum_i (g_i - m)(g_i - m)^T around the mean gradient m, as in TONGA
    (Le Roux, Manzagol & Bengio 2008), computed without cancellation (Chan, Golub & LeVeque 1983).

    The target of a batch is its second part, `(inputs, targets)`, or its `labels`.

    Args:
        model: As for `FIM`.
        loader: As for `FIM`; its batches have targets.
        representation: As for `FIM`.
        n_output: As for `FIM`.
        variant: The likelihood, whose -log p(target | outputs) is the loss unless one is given. None takes outputs of any
            shape, with a `loss`. Beside a loss, it says which positions count (padding, ignored pixels), and the targets
            of "causal_lm_logits" are the next tokens.
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
        loss: Maps outputs (n, ...) and targets to one loss for each example, shape (n,), neither summed nor averaged over
            examples: `reduction="none"` in torch's losses.
        centred: Whether to subtract the mean gradient.

    Returns:
        The matrix, or a list of them.

    Raises:
        ShapeError: The loss is not of shape (n,), or the targets do not fit the outputs.
        ValueError: There are no targets, neither variant nor loss, or as for `FIM`.
        UnsupportedOperationError: `centred=True` with a representation that has no centred form (KFAC).

    Example:
        >>> model = nn.Linear(2, 1)
        >>> x, y = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[1.0], [0.0]])
        >>> def huber(outputs, targets):
        ...     return nn.functional.huber_loss(outputs, targets, reduction="none").sum(1)
        >>> EmpiricalFIM(model, (x, y), "diag", loss=huber).size()
        (3, 3)
    """
    group = chosen_group(distributed, process_group)
    with telling(group, "EmpiricalFIM"):
        likelihood = Empirical(likelihood_for_loss(variant, loss), loss, centred)
        arguments = (model, likelihood, function, layer_collection, device, n_output, memory_budget, check)
        kept = checkpoint_in(checkpoint, checkpoint_every)
        return swept(lambda: registry.generator("hooks")(*arguments), loader, representation, progress, kept, group)
