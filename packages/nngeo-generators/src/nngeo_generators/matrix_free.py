"""Products with the Jacobian and the Fisher matrix, with nothing stored.

F v = J^T (L (J v)) takes one forward pass with dual numbers, which keeps the graph of the outputs, and one backward pass
through it, whatever the number of outputs (Pearlmutter 1994; Schraudolph 2002). Parameters are replaced by leaves that
share their values, so that no flag of the user's changes.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import NNGeoError, NonFiniteError, ShapeError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.sweep.examples import Batch, count_examples, move_batch
from nngeo_core.sweep.generator import Generator
from nngeo_generators.network import Network
from nngeo_generators.trust import check_finite, check_modes

__all__ = ["fisher_product", "flatten", "leaves", "pull_back", "pull_back_one", "push_forward"]


def push_forward(generator: Generator, v: Tensor, batches: Iterable[Batch]) -> Tensor:
    """J v, shape (c, n), for v of shape (d,)."""
    parameters = leaves(generator.model, generator.layer_collection)
    tangents = _split(v, parameters)
    changes = [
        _linearized(generator, network, parameters, tangents, batch, number)[1].flatten(1).T
        for number, batch, network in _evaluations(generator, batches)
    ]
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


def fisher_product(generator: Generator, v: Tensor, batches: Iterable[Batch]) -> Tensor:
    """F v, shape (d,), for v of shape (d,)."""
    parameters = leaves(generator.model, generator.layer_collection)
    tangents = _split(v, parameters)
    n, total, quadratic_form = 0, _zeros(parameters), torch.zeros((), device=v.device)
    for number, batch, network in _evaluations(generator, batches):
        outputs, change = _linearized(generator, network, parameters, tangents, batch, number)
        cotangent = generator.likelihood.metric(outputs.detach(), change)
        torch._foreach_add_(total, pull_back_one(outputs, parameters, cotangent))
        quadratic_form = quadratic_form + (cotangent * change).sum()
        n += len(outputs)
    product = _checked(flatten(total).div_(n), "F v")
    rounding = max(torch.finfo(leaf.dtype).eps for leaf in parameters.values())
    _check_consistent(v.to(product), product, quadratic_form / n, rounding)
    return product


def leaves(model: nn.Module, layers: LayerCollection) -> dict[str, Tensor]:
    """Leaf tensors that share the values of the collection's parameters, in flat order."""
    return {name: parameter.detach().requires_grad_() for name, parameter in layers.named_parameters(model)}


def pull_back_one(outputs: Tensor, parameters: Mapping[str, Tensor], cotangent: Tensor) -> list[Tensor]:
    """J^T cotangent, parameter by parameter, through the graph of the outputs."""
    wanted = list(parameters.values())
    if not outputs.requires_grad:
        return [torch.zeros_like(parameter) for parameter in wanted]
    cotangent = cotangent.to(outputs.dtype)
    return list(torch.autograd.grad(outputs, wanted, cotangent, allow_unused=True, materialize_grads=True))


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


def _split(v: Tensor, parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """A flat vector (d,) as one tensor for each parameter, each with memory of its own as dual numbers want it."""
    parts = v.split([leaf.numel() for leaf in parameters.values()])
    return [part.view(leaf.shape).to(leaf, copy=True) for part, leaf in zip(parts, parameters.values(), strict=True)]


def _linearized(
    generator: Generator,
    network: Network,
    parameters: Mapping[str, Tensor],
    tangents: Sequence[Tensor],
    batch: Batch,
    number: int,
) -> tuple[Tensor, Tensor]:
    """The outputs, with their graph, and J v, without."""
    _load_forward_mode()
    with forward_ad.dual_level(), torch.enable_grad():
        pairs = zip(parameters.items(), tangents, strict=True)
        duals = {name: forward_ad.make_dual(leaf, tangent) for (name, leaf), tangent in pairs}
        outputs, change = forward_ad.unpack_dual(network.with_parameters(duals, batch))
    check_finite(outputs, generator.model, lambda: network(batch), number)
    return outputs, torch.zeros_like(outputs) if change is None else change.detach()


@cache
def _load_forward_mode() -> None:
    """Have torch load its forward-mode formulas, which warns of torch's own use of a deprecated function."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


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


def _check_consistent(v: Tensor, product: Tensor, quadratic_form: Tensor, rounding: float) -> None:
    """Compare v.(F v) from the backward pass with (J v).L(J v)/n from the forward pass, to the root of a rounding unit.

    Raises:
        NNGeoError: They differ: the model's forward-mode and reverse-mode derivatives are not the same.
    """
    from_reverse = v @ product
    scale = quadratic_form.abs() + v.norm() * product.norm()
    if not (from_reverse - quadratic_form).abs() <= rounding**0.5 * scale:
        raise NNGeoError(
            f"forward-mode and reverse-mode derivatives of this model differ: v.(F v) = {from_reverse.item():.6g} and "
            f"(J v).L(J v)/n = {quadratic_form.item():.6g}; a custom autograd function or an inner no_grad does that. "
            "Use a representation that stores the matrix"
        )
