"""Empirical Fisher: the second moment of the gradients of per-example losses at the given targets."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from nngeo_core.errors import ShapeError
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.wrapped import Wrapped

__all__ = ["Empirical", "Loss", "per_example"]

Loss = Callable[[Tensor, Any], Tensor]
"""Maps outputs (n, ...) and targets to one loss for each example, shape (n,)."""


class Empirical(Wrapped):
    """L_i = g_i g_i^T with g_i the gradient of example i's loss with respect to its outputs: one direction for each.

    Not the Fisher matrix, which takes the expectation over the model's own targets (Kunstner, Balles & Hennig 2019).

    Args:
        inner: What the outputs mean; supplies the loss -log p(y | outputs) if none is given.
        loss: Maps outputs and targets to one loss for each example, shape (n,): `reduction="none"` in torch's losses.
        centred: Whether to subtract the mean gradient over all examples.
    """

    name = "empirical"

    def __init__(self, inner: Likelihood, loss: Loss | None = None, centred: bool = False) -> None:
        super().__init__(inner)
        self.loss = loss
        self.centred = centred

    def targets(self, examples: Any) -> Any:
        """The targets of the batch."""
        return self.observed(examples)

    def n_directions(self, outputs: Tensor, targets: Any = None) -> int:
        """One."""
        return 1

    def directions(self, outputs: Tensor, targets: Any, chosen: slice) -> Tensor:
        """The gradient g, shape (1, *outputs), up to a sign."""
        if self.loss is None:
            if not isinstance(targets, Tensor):
                raise ShapeError(
                    f"targets are one tensor, or come with a `loss` that takes them; got {type(targets).__name__}"
                )
            return self.inner.score(outputs, targets).unsqueeze(0)
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            losses = per_example(self.loss, leaf, targets)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True, materialize_grads=True)
        return gradient.unsqueeze(0)


def per_example(loss: Loss, outputs: Tensor, targets: Any) -> Tensor:
    """The losses of n examples, checked: shape (n,).

    Raises:
        ShapeError: The loss is averaged or summed over examples, or not yet summed over positions.
        ValueError: It depends on the other examples, or does not depend on the outputs by way of autograd.
    """
    losses = loss(outputs, targets)
    if not isinstance(losses, Tensor) or losses.shape != outputs.shape[:1]:
        given = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ShapeError(
            f"the loss returned {given} for {len(outputs)} examples, expected ({len(outputs)},): one loss for each, not "
            'averaged over the batch; give reduction="none" and sum over positions, as in '
            'lambda outputs, targets: cross_entropy(outputs, targets, reduction="none")'
        )
    if outputs.requires_grad and not losses.requires_grad:
        raise ValueError(
            "the loss does not depend on the outputs by way of autograd; leave out detach(), no_grad() and numpy"
        )
    _check_alone(loss, outputs.detach(), targets, losses.detach())
    return losses


def _check_alone(loss: Loss, outputs: Tensor, targets: Any, losses: Tensor) -> None:
    """Raise if the example with the largest loss has another one alone than among the others."""
    count, place = len(outputs), int(losses.abs().argmax()) if len(outputs) else 0
    chosen = slice(place, place + 1)
    one = tree_map_only(Tensor, lambda part: part[chosen] if part.shape[:1] == (count,) else part, targets)
    alone = loss(outputs[chosen], one) if count > 1 else losses
    if (alone - losses[chosen]).abs().max() > torch.finfo(losses.dtype).eps ** 0.5 * losses.abs().max():
        raise ValueError(
            f"the loss of an example is {float(alone):.6g} alone and {float(losses[place]):.6g} among {count}: it depends on "
            "the other examples (divided by their number?), or is random; expected one loss for each example"
        )
