"""Hessian: the second derivative of the mean loss."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.choice import likelihood_for_loss
from nngeo_core.likelihoods.empirical import Loss
from nngeo_core.matrices.pmat import PMat
from nngeo_core.parallel.group import Group
from nngeo_core.plugins import registry
from nngeo_core.sweep.identity import computation
from nngeo_core.sweep.processes import agree, check_shard, chosen_group, share, telling
from nngeo_core.verbs.sweep import START

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Hessian"]

_KINDS = ("implicit", "dense", "blockdiag")


def Hessian(
    model: nn.Module,
    loader: Any,
    representation: str | type[PMat] | Sequence[str | type[PMat]],
    n_output: int | None = None,
    variant: str | Likelihood | None = None,
    device: torch.device | str | None = None,
    function: Callable[..., Any] | None = None,
    layer_collection: LayerCollection | None = None,
    memory_budget: int | None = None,
    check: str = "first-batch",
    *,
    loss: Loss | None = None,
    distributed: bool = False,
    process_group: "ProcessGroup | None" = None,
) -> Any:
    """The Hessian d^2 / d theta^2 (1/n) sum_i loss_i, by two backward passes (Pearlmutter 1994).

    It is symmetric and in general indefinite: what needs a definite matrix (`sqrt`, `logdet`, `sample`, conjugate gradients)
    raises where it is not, and `GGN` is its positive semidefinite part for a convex loss. It has no Jacobians, which all
    representations are made of but three: "implicit" (products; its leading eigenvalues, norm(2) and spectral density are
    exact or bounded), "dense", and "blockdiag". What a model or a loss detaches counts as a constant.

    Args:
        model: As for `FIM`.
        loader: One batch or a loader that can be iterated again, with targets: `(inputs, targets)`, or `labels`.
        representation: "implicit", "dense" or "blockdiag", their classes, or a list of those.
        n_output: As for `FIM`.
        variant: The likelihood: the loss is its -log p(y | outputs). None takes outputs of any shape, with a `loss`. Beside a
            loss, it says which positions count.
        device: As for `FIM`.
        function: As for `FIM`.
        layer_collection: As for `FIM`.
        memory_budget: As for `FIM`.
        check: When a batch is seen not to mix examples, and products with it to be symmetric: "first-batch", "every-batch"
            or "off".
        loss: Maps outputs (n, ...) and targets to one loss for each example, shape (n,), neither summed nor averaged over
            examples: `reduction="none"` in torch's losses.
        distributed: As for `FIM`: the mean is over the examples of all processes.
        process_group: As for `FIM`.

    Returns:
        The matrix, or a list of matrices in the order of `representation`.

    Raises:
        UnsupportedOperationError: Another representation is asked for.
        UnsupportedLayerError: Examples mix, or autograd has no second derivative; names what it can.
        ShapeError: The loss is not of shape (n,).
        ValueError: There are no targets, neither variant nor loss, or the loader can be read only once.
        NonFiniteError: The outputs or the second derivatives have a NaN or an infinity.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]])
        >>> Hessian(model, (x, y), "dense", loss=lambda outputs, y: (outputs - y).square().sum(1)).trace()
        tensor(10.)
    """
    group = chosen_group(distributed, process_group)
    several = isinstance(representation, Sequence) and not isinstance(representation, str)
    choices: Any = representation if several else [representation]
    with telling(group, "Hessian"):
        if not choices:
            raise ValueError("representation is an empty list; give at least one name or class")
        kinds = [_checked_kind(choice) for choice in choices]
        likelihood = likelihood_for_loss(variant, loss)
        generator = registry.generator("hessian")(
            model, likelihood, function, layer_collection, device, n_output, memory_budget, check, loss
        )
        about = f"hessian of {'a loss' if loss is not None else likelihood.name}"
        lazy = registry.representation("implicit", kind="pmat")(generator, examples=loader, likelihood=about)
        if group is not None:
            check_shard(loader, group)
            _join(generator, group, kinds, loss)
        matrices = [lazy.convert(kind) for kind in kinds]
    return matrices if several else matrices[0]


def _join(generator: Any, group: Group, kinds: Sequence[type[PMat]], loss: Loss | None) -> None:
    """Have a generator's products go over the examples of all processes, which agree about what they compute."""
    share(generator, group, START)
    agree(group, START, {"the representations": [f"Hessian {kind.__name__}" for kind in kinds]})
    agree(group, START, computation(generator, ()) | {"the loss": getattr(loss, "__qualname__", str(type(loss)))})


def _checked_kind(choice: object) -> type[PMat]:
    """The class of a representation that products are enough for."""
    known = {name: registry.representation(name, kind="pmat") for name in _KINDS}
    wanted = registry.representation(choice, kind="pmat") if isinstance(choice, str) else choice
    for kind in known.values():
        if wanted is kind:
            return wanted
    given = repr(choice) if isinstance(choice, str) else getattr(choice, "__name__", repr(choice))
    raise UnsupportedOperationError(
        f"a Hessian has products and no Jacobians, which {given} would be made of; use one of {', '.join(map(repr, _KINDS))}, "
        "or GGN(...), which any representation can hold"
    )
