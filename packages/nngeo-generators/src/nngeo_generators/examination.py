"""Examination: the first batch's comparison of every layer with a plain gradient, and the promotion of those that differ."""

from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import NNGeoError, UnsupportedLayerError
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.sweep.examples import Batch, count_examples, map_tensors, select_examples
from nngeo_core.sweep.generator import Generator
from nngeo_generators.capture import Capture
from nngeo_generators.graph import coarsest, keeps_precision
from nngeo_generators.linearize import pull_back_one
from nngeo_generators.matrix_free import leaves
from nngeo_generators.network import Network
from nngeo_generators.plan import Use
from nngeo_generators.promotion import promote
from nngeo_generators.stand_in import try_stand_ins
from nngeo_generators.trust import check_repeatable, differ, differing_layers

__all__ = [
    "by_themselves",
    "check_among_all",
    "check_examples",
    "examined_plan",
    "outputs_alone",
    "plain_gradient",
    "raise_alone",
    "run_unwritten",
]

Forward = Callable[[Sequence[Use]], Capture]

MIXED = (
    "an example's outputs differ with the others in its batch: the model mixes examples (batch statistics, attention along the "
    "wrong axis), so no derivative of one example exists; the first dimension of every tensor must be that of the examples"
)


def run_unwritten(network: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """The outputs of a network that leaves its batch as it is.

    Raises:
        UnsupportedLayerError: It writes to its inputs.
    """
    tensors = [part for part in tree_leaves(batch) if isinstance(part, Tensor)]
    versions = [part._version for part in tensors]
    outputs = network(batch)
    if versions != [part._version for part in tensors]:
        raise UnsupportedLayerError(
            "the model changes its inputs in place, so that every pass sees others; use the out-of-place form of that operation"
        )
    return outputs


def check_examples(network: Network, batch: Batch, outputs: Tensor, alone: Tensor | None = None) -> None:
    """Raise unless a network gives every example, alone and with every other one, what it gets among all.

    Args:
        network: Maps a batch to its outputs.
        batch: Some examples.
        outputs: Those of the batch, with their graph.
        alone: Those of its last example alone, if they are known.

    Raises:
        UnsupportedLayerError: The model mixes examples, or draws random numbers.
    """
    n, computed, outputs = len(outputs), coarsest(outputs), outputs.detach()
    if n == 1:
        check_repeatable(network(batch) if alone is None else alone.detach(), outputs, computed)
        return
    apart = []
    for some in (slice(n - 1, n), slice(0, n, 2), slice(1, n, 2)):
        found = alone if some.start == n - 1 else None
        found = outputs_alone(network, by_themselves(batch, some), batch) if found is None else found
        if differ(found.detach(), outputs[some], computed):
            apart.append(some)
    if apart:
        check_repeatable(network(batch), outputs, computed)
        if computed == torch.float64 or not _agree_in_float64(network, batch, apart):
            raise UnsupportedLayerError(MIXED)


def check_among_all(network: Network, batch: Batch, some: Tensor) -> None:
    """Raise unless a network gives some examples of a batch by themselves what it gives them among all.

    Raises:
        UnsupportedLayerError: The model mixes examples, or does something else with many of them than with few.
    """
    with torch.enable_grad():
        found = outputs_alone(network, by_themselves(batch, some), batch)
    computed = coarsest(found)
    differs = differ(found.detach(), network(batch).detach()[some], computed)
    if differs and (computed == torch.float64 or not _agree_in_float64(network, batch, [some])):
        raise UnsupportedLayerError(MIXED)


def by_themselves(batch: Batch, some: slice | Tensor) -> Batch:
    """Some examples of a batch, which lie in memory as a batch of their own would."""
    return map_tensors(select_examples(batch, some), Tensor.contiguous)


def _agree_in_float64(network: Network, batch: Batch, apart: Sequence[slice | Tensor]) -> bool:
    """Whether some examples have the same outputs by themselves as among all when they are computed with more digits.

    Then what differed is the rounding of one batch size and another, of which outputs near to zero may be made, such as a
    difference of logits; or a model mixes examples in fewer digits alone, which is not told from that.
    """
    try:
        among_all = network.in_float64(batch)
        pairs = [(network.in_float64(by_themselves(batch, some)), among_all[some]) for some in apart]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model may insist on a dtype: then it is not known
        return False
    return all(not differ(*pair) and all(map(all_finite, pair)) for pair in pairs)


def examined_plan(
    generator: Generator,
    network: Network,
    plan: Sequence[Use],
    batch: Batch,
    forward: Forward,
    alone: Tensor | None = None,
    seen: bool = False,
) -> tuple[tuple[Use, ...], bool | None]:
    """A plan by which every layer's sum w J agrees with a plain gradient of the model on these examples.

    Each example and direction has a weight of its own, so that examples in another order show.

    Args:
        generator: Knows the model and its layers.
        network: Maps a batch to the outputs.
        plan: The uses of the layers' parameters to start from.
        batch: Some examples.
        forward: Runs the model on them with hooks for a plan.
        alone: The outputs of the last example alone, if they are known.
        seen: Whether outputs of other examples depended on the parameters: these need not.

    Returns:
        The plan, and whether several directions can go backward at once; None where none can go at all.

    Raises:
        UnsupportedLayerError: The model mixes examples or draws random numbers, or some layer has no exact derivative.
        NonFiniteError: The outputs or the gradient have a NaN or an infinity.
    """
    parameters = leaves(generator.model, generator.layer_collection)
    with torch.enable_grad():
        graph = run_unwritten(partial(network.with_parameters, parameters), batch)
    outputs, computed = graph.detach(), coarsest(graph)
    check_examples(network, batch, graph, alone)
    if seen and not graph.requires_grad:
        return tuple(plan), None  # the derivative is zero
    directions, weights = _random_directions(outputs)
    try:
        precise = keeps_precision(graph)
        plain = plain_gradient(graph, parameters, torch.einsum("cn...,cn->n...", directions, weights))
        del graph
    except UnsupportedLayerError:
        forward(plan).raise_refused()  # an input changed in place has a name here
        raise
    plan = try_stand_ins(plan, outputs, forward)
    while True:
        capture = forward(plan)
        by_itself = {use.layer_id for use in plan if precise and use.module is not network}  # which has no further way
        differing = _differing(
            capture, outputs, directions, weights, plain, generator.layer_collection, by_itself, computed
        )
        if not differing:
            return tuple(plan), capture.batched
        for layer_id, reason in differing.items():
            plan = promote(plan, layer_id, reason, network, generator.layer_collection)


def outputs_alone(network: Network, examples: Batch, batch: Batch) -> Tensor:
    """The outputs of some examples of a batch.

    Raises:
        UnsupportedLayerError: The network takes the batch, and not these examples alone.
    """
    try:
        outputs: Tensor = network(examples)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise_alone(network, examples, batch, error)
    return outputs


def raise_alone(network: Network, examples: Batch, batch: Batch, error: Exception) -> NoReturn:
    """Raise what the model itself raises for a batch, or else what it raised for some of its examples, with a reason.

    Raises:
        UnsupportedLayerError: The network takes the batch, and not these examples alone.
    """
    network(batch)
    raise UnsupportedLayerError(
        f"the model cannot be called on {count_examples(examples)} of the examples alone: {error}"
    ) from error


def _random_directions(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Two output gradients (2, n, ...) and a weight for each example of each (2, n), the same each time."""
    source = torch.Generator().manual_seed(0)
    dtype = result_dtype(outputs.dtype)
    directions = torch.randn(2, *outputs.shape, generator=source, dtype=dtype, device="cpu").to(outputs.device)
    return directions, torch.linspace(1, 2, 2 * len(outputs), dtype=dtype, device=outputs.device).view(2, -1)


def plain_gradient(outputs: Tensor, parameters: Mapping[str, Tensor], cotangent: Tensor) -> dict[str, Tensor]:
    """J^T cotangent from plain autograd, by parameter."""
    if not outputs.requires_grad:
        raise UnsupportedLayerError(
            "the outputs do not depend on any parameter of the layer collection: does `function` call this model, without "
            "detach() and no_grad()?"
        )
    return dict(zip(parameters, pull_back_one(outputs, parameters, cotangent), strict=True))


def _differing(
    capture: Capture,
    outputs: Tensor,
    directions: Tensor,
    weights: Tensor,
    plain: Mapping[str, Tensor],
    layers: LayerCollection,
    by_itself: Container[str],
    computed: torch.dtype,
) -> dict[str, str]:
    """The layers whose Jacobian cannot be read, or whose sum w J is not the plain gradient, with the reason."""
    if capture.refused:
        return capture.refused
    try:
        check_repeatable(capture.outputs.detach(), outputs, computed)
        jacobians = _jacobians(capture, directions)
    except UnsupportedLayerError:
        if not (capture.refused or capture.altered):
            raise
        return capture.refused or capture.altered
    return differing_layers(jacobians, weights, plain, layers, computed, by_itself)


def _jacobians(capture: Capture, directions: Tensor) -> dict[str, LayerJacobian]:
    """The layers' Jacobians, direction by direction if autograd cannot take them at once."""
    try:
        return capture.layer_jacobians(directions, keep_graph=True)
    except RuntimeError as error:
        if isinstance(error, NNGeoError) or not capture.batched:
            raise
        capture.batched = False
        return capture.layer_jacobians(directions, keep_graph=False)
