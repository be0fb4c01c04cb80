"""FIM_MonteCarlo: the Fisher information matrix estimated with targets drawn from the model."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nngeo_core.layers.collection import LayerCollection
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.choice import chosen_likelihood
from nngeo_core.likelihoods.draws import fresh_seed
from nngeo_core.likelihoods.sampled import MonteCarlo
from nngeo_core.matrices.choice import Representation
from nngeo_core.plugins import registry
from nngeo_core.sweep.checkpoint import checkpoint_in
from nngeo_core.sweep.processes import chosen_group, telling
from nngeo_core.verbs.sweep import swept

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["FIM_MonteCarlo"]


def FIM_MonteCarlo(
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
    trials: int = 1,
    generator: torch.Generator | None = None,
) -> Any:
    """An unbiased estimate of `FIM`: (1/n) sum_i (1/t) sum_k s_ik s_ik^T over t targets drawn for each example.

    s_ik is the gradient of log p(y_k | x_i) with respect to the parameters, y_k drawn from the model's own p(y | x_i). It
    takes t directions for each example, where the exact matrix takes one for each class and position; its error falls as
    1/sqrt(n t).

    Several processes take the first one's seed, and draw from a stream of their own each.

    The draws are made by a seed and by each example's content (all of its tensors), so that every pass over the data and
    every product with the result's generator sees the same ones, in whatever order and batches the examples come: the
    estimate is one fixed matrix. Examples that are equal, or differ only in what is no tensor, get equal draws. The estimate
    stays unbiased; their errors do not average out among themselves, so prefer more trials to repeated examples.

    Args:
        model: As for `FIM`.
        loader: As for `FIM`.
        representation: As for `FIM`.
        n_output: As for `FIM`.
        variant: The likelihood to draw from, as for `FIM`.
        device: As for `FIM`.
        function: As for `FIM`.
        layer_collection: As for `FIM`.
        progress: As for `FIM`.
        memory_budget: As for `FIM`.
        check: As for `FIM`.
        checkpoint: As for `FIM`; the draws must be the same when it is started again, so `generator` must be seeded.
        checkpoint_every: As for `FIM`.
        distributed: As for `FIM`.
        process_group: As for `FIM`.
        trials: t, how many targets to draw for each example.
        generator: Gives the seed, and is advanced by that; None takes a seed from the operating system.

    Returns:
        The matrix, or a list of them. `F.generator.likelihood.seed` is the seed: `variant=MonteCarlo(likelihood, trials, seed)`
        of `FIM` computes the same matrix again.

    Raises:
        ValueError: `trials` is no positive number, or as for `FIM`.
        UnsupportedOperationError: Targets cannot be drawn from the likelihood.

    Example:
        >>> model, x = nn.Linear(2, 3), torch.tensor([[1.0, 2.0], [0.0, -1.0]])
        >>> F = FIM_MonteCarlo(model, x, "dense", trials=10, generator=torch.Generator().manual_seed(0))
        >>> F.size(), F.generator.likelihood.trials
        ((9, 9), 10)
    """
    group = chosen_group(distributed, process_group)
    with telling(group, "FIM_MonteCarlo"):
        likelihood = MonteCarlo(chosen_likelihood(variant), trials, fresh_seed(generator))
        arguments = (model, likelihood, function, layer_collection, device, n_output, memory_budget, check)
        kept = checkpoint_in(checkpoint, checkpoint_every)
        return swept(lambda: registry.generator("hooks")(*arguments), loader, representation, progress, kept, group)
