"""Products with the Jacobian and the Fisher matrix, with nothing stored.

F v = J^T (L (J v)) takes one forward pass with dual numbers, which keeps the graph of the outputs, and one backward pass
through it, whatever the number of outputs (Pearlmutter 1994; Schraudolph 2002). Parameters are replaced by leaves that
share their values, so that no flag of the user's changes.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import NonFiniteError, ShapeError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.sweep.examples import Batch, count_examples, move_batch
from nngeo_core.sweep.generator import Generator
from nngeo_generators.linearize import Linearizer, Way, pull_back_one
from nngeo_generators.network import Network
from nngeo_generators.trust import check_finite, check_modes

__all__ = ["fisher_product", "flatten", "leaves", "pull_back", "push_forward"]


def push_forward(generator: Generator, v: Tensor, batches: Iterable[Batch], ways: list[Way], sound: set[Way]) -> Tensor:
    """J v, shape (c, n), for v of shape (d,)."""
    linearizer = Linearizer(generator.model, leaves(generator.model, generator.layer_collection), v, ways, sound)
    changes = []
    for number, batch, network in _evaluations(generator, batches):
        found = linearizer.linearize(network, batch, lambda outputs, change: change)
        check_finite(found.outputs, generator.model, partial(network, batch), number)
        changes.append(found.change.flatten(1).T)
    return _checked(torch.cat(changes, 1), "J v")


def pull_back(generator: Generator, u: Tensor, batches: Iterable[Batch]) -> Tensor:
    """J^T u, shape (d,), for u of shape (c, n)."""
    parameters = leaves(generator.model, generator.layer_collection)
    total, seen = _zeros(parameters), 0
    for number, batch, network in _evaluations(generator, batches):
        with torch.enable_grad():
            outputs = network.with_parameters(parameters, batch)
        check_finite(outputs, generator.model, partial(network, batch), number)
        cotangent = u[:, seen : seen + len(outputs)].T
        if cotangent.numel() != outputs.numel():
            raise ShapeError(
                f"u has shape {tuple(u.shape)}, expected (c, n) for {outputs[0].numel()} outputs and at least "
                f"{seen + len(outputs)} examples"
            )
        torch._foreach_add_(total, pull_back_one(outputs, parameters, cotangent.reshape(outputs.shape)))
        seen += len(outputs)
    if seen != u.shape[1]:
        raise ShapeError(f"u has shape {tuple(u.shape)}, and there are {seen} examples")
    return _checked(flatten(total), "J^T u")


def fisher_product(
    generator: Generator, v: Tensor, batches: Iterable[Batch], ways: list[Way], sound: set[Way]
) -> Tensor:
    """F v, shape (d,), for v of shape (d,)."""
    parameters = leaves(generator.model, generator.layer_collection)
    linearizer = Linearizer(generator.model, parameters, v, ways, sound)
    n, total = 0, _zeros(parameters)
    for number, batch, network in _evaluations(generator, batches):
        found = linearizer.linearize(network, batch, generator.likelihood.metric)
        check_finite(found.outputs, generator.model, partial(network, batch), number)
        torch._foreach_add_(total, found.pulled)
        n += len(found.outputs)
    return _checked(flatten(total).div_(n), "F v")


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


def flatten(parts: Iterable[Tensor]) -> Tensor:
    """One tensor for each parameter as a flat vector (d,)."""
    return torch.cat([part.flatten() for part in parts])


def _zeros(parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """Where sums over examples are kept: at least float32."""
    return [torch.zeros_like(leaf, dtype=result_dtype(leaf.dtype), requires_grad=False) for leaf in parameters.values()]


def _evaluations(generator: Generator, batches: Iterable[Batch]) -> Iterator[tuple[int, Batch, Network]]:
    """The batches with examples, numbered and on the model's device, and the network that takes them to outputs."""
    check_modes(generator.model)
    empty = True
    for number, received in enumerate(batches):
        batch = move_batch(received, generator.device)
        n = count_examples(batch)
        if n:
            empty = False
            yield number, batch, Network(generator.model, partial(generator.outputs, n=n))
    if empty:
        raise ValueError("no examples were given; a product needs at least one")


def _checked(result: Tensor, what: str) -> Tensor:
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
