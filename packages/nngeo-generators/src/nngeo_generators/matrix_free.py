"""Products with the Jacobian and the Fisher matrix, with nothing stored.

F v = J^T (L (J v)) takes one forward pass with dual numbers, which keeps the graph of the outputs, and one backward pass
through it, whatever the number of outputs (Pearlmutter 1994; Schraudolph 2002). Parameters are replaced by leaves that
share their values, so that no flag of the user's changes.
"""

from collections.abc import Iterable, Mapping
from functools import partial, reduce

import torch
from torch import Tensor, nn

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import NonFiniteError, ShapeError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.sweep.generator import Generator
from nngeo_generators.joining import Part
from nngeo_generators.linearize import Linearizer, Sound, Way, pull_back_one
from nngeo_generators.network import Network
from nngeo_generators.trust import check_finite

__all__ = ["NO_EXAMPLES", "checked_result", "fisher_form", "fisher_product", "leaves", "pull_back", "push_forward"]

NO_EXAMPLES = "no examples were given; a product needs at least one"


def push_forward(
    generator: Generator, network: Network, v: Tensor, parts: Iterable[Part], ways: list[Way], sound: Sound
) -> Tensor:
    """J v, shape (c, n), for v of shape (d,)."""
    linearizer = Linearizer(generator.model, leaves(generator.model, generator.layer_collection), v, ways, sound)
    changes = []
    for part in parts:
        found = linearizer.linearize(network, part.batch, lambda outputs, change: change)
        check_finite(found.outputs, generator.model, partial(network, part.batch), part.numbers)
        changes.append(found.change.reshape(len(found.change), -1).T)
    if not changes:
        raise ValueError(NO_EXAMPLES)
    return checked_result(torch.cat(changes, 1), "J v")


def pull_back(generator: Generator, network: Network, u: Tensor, parts: Iterable[Part]) -> Tensor:
    """J^T u, shape (d,), for u of shape (c, n)."""
    parameters = leaves(generator.model, generator.layer_collection)
    (total, sums), seen = _zeros(parameters), 0
    for part in parts:
        with torch.enable_grad():
            outputs = network.with_parameters(parameters, part.batch)
        check_finite(outputs, generator.model, partial(network, part.batch), part.numbers)
        cotangent = u[:, seen : seen + len(outputs)].T
        if cotangent.numel() != outputs.numel():
            raise ShapeError(
                f"u has shape {tuple(u.shape)}, expected (c, n) for {outputs[0].numel()} outputs and at least "
                f"{seen + len(outputs)} examples"
            )
        torch._foreach_add_(sums, pull_back_one(outputs, parameters, cotangent.reshape(outputs.shape)))
        seen += len(outputs)
    if not seen:
        raise ValueError(NO_EXAMPLES)
    if seen != u.shape[1]:
        raise ShapeError(f"u has shape {tuple(u.shape)}, and there are {seen} examples")
    return checked_result(total, "J^T u")


def fisher_product(
    generator: Generator, network: Network, v: Tensor, parts: Iterable[Part], ways: list[Way], sound: Sound
) -> Tensor:
    """F v, shape (d,), for v of shape (d,)."""
    parameters = leaves(generator.model, generator.layer_collection)
    linearizer = Linearizer(generator.model, parameters, v, ways, sound)
    n, (total, sums) = 0, _zeros(parameters)
    for part in parts:
        metric, counted = (partial(act, batch=part.batch) for act in (generator.metric, generator.counted))
        found = linearizer.linearize(network, part.batch, metric, counted)
        check_finite(found.outputs, generator.model, partial(network, part.batch), part.numbers)
        torch._foreach_add_(sums, found.pulled)
        n += len(found.outputs)
        del found  # or its memory would be fresh for each part
    if not n:
        raise ValueError(NO_EXAMPLES)
    return checked_result(total.div_(n), "F v")


def fisher_form(
    generator: Generator, network: Network, v: Tensor, parts: Iterable[Part], ways: list[Way], sound: Sound
) -> Tensor:
    """v^T F v, 0-dimensional, for v of shape (d,): forward passes alone, once a way to J v has shown to be exact."""
    linearizer = Linearizer(generator.model, leaves(generator.model, generator.layer_collection), v, ways, sound)
    n, total = 0, torch.zeros((), dtype=v.dtype, device=v.device)
    for part in parts:
        found = linearizer.linearize(network, part.batch, None, partial(generator.counted, batch=part.batch))
        check_finite(found.outputs, generator.model, partial(network, part.batch), part.numbers)
        total += (generator.metric(found.outputs, found.change, part.batch) * found.change).sum()
        n += len(found.outputs)
    if not n:
        raise ValueError(NO_EXAMPLES)
    return checked_result(total / n, "v^T F v")


def leaves(model: nn.Module, layers: LayerCollection) -> dict[str, Tensor]:
    """Leaf tensors with the values of the collection's parameters, in flat order.

    They are the parameters themselves where these want a gradient, which shows a model that keeps them elsewhere too (in a
    list, in a closure), unless hooks of the user's would change it.
    """
    return {
        name: parameter
        if parameter.requires_grad and not parameter._backward_hooks
        else parameter.detach().requires_grad_()
        for name, parameter in layers.named_parameters(model)
    }


def _zeros(parameters: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Where a sum over examples is kept, at least in float32: flat (d,), and the views of it for each parameter."""
    leaves = list(parameters.values())
    dtype = reduce(torch.promote_types, (result_dtype(leaf.dtype) for leaf in leaves))
    flat = torch.zeros(sum(leaf.numel() for leaf in leaves), dtype=dtype, device=leaves[0].device)
    parts = flat.split([leaf.numel() for leaf in leaves])
    return flat, [part.view(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]


def checked_result(result: Tensor, what: str) -> Tensor:
    """The result, if it is finite.

    Raises:
        NonFiniteError: It is not, though the outputs are.
    """
    if not all_finite(result):
        raise NonFiniteError(
            f"{what} has a NaN or an infinity, and the outputs have none: the vector has one, or the model has no "
            "derivative at these examples (a square root or a norm at zero?)"
        )
    return result
