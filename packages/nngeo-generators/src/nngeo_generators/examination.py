"""Examination: the first batch's comparison of every layer with a plain gradient, and the promotion of those that differ."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.sweep.examples import Batch, count_examples, select_examples
from nngeo_core.sweep.generator import Generator
from nngeo_generators.capture import Capture
from nngeo_generators.linearize import pull_back_one
from nngeo_generators.matrix_free import flatten, leaves
from nngeo_generators.network import Network
from nngeo_generators.plan import Use
from nngeo_generators.promotion import promote
from nngeo_generators.stand_in import try_stand_ins
from nngeo_generators.trust import check_alone, check_repeatable, differing_layers

__all__ = ["examined_plan"]

Forward = Callable[[Sequence[Use]], Capture]


def examined_plan(generator: Generator, plan: Sequence[Use], batch: Batch, forward: Forward) -> tuple[Use, ...]:
    """A plan by which every layer's sum w J agrees with a plain gradient of the model on these examples.

    Each example has a weight of its own, so that examples in another order show. Two forward passes must agree, and an
    example alone must give its row of the outputs.

    Args:
        generator: Knows the model and its outputs.
        plan: The uses of the layers' parameters to start from.
        batch: Some examples.
        forward: Runs the model on them with hooks for a plan.

    Raises:
        UnsupportedLayerError: The model mixes examples or draws random numbers, or some layer has no exact derivative.
        NonFiniteError: The outputs or the gradient have a NaN or an infinity.
    """
    n = count_examples(batch)
    parameters = leaves(generator.model, generator.layer_collection)
    with torch.enable_grad():
        outputs = Network(generator.model, partial(generator.outputs, n=n)).with_parameters(parameters, batch)
    check_repeatable(generator.outputs(batch, n), outputs.detach())
    check_alone(_last_alone(generator, batch, n), outputs[-1:].detach())
    cotangent, weights = _random_cotangent(outputs)
    weighted = torch.einsum("n...,n->n...", cotangent, weights.to(cotangent))
    try:
        plain = flatten(pull_back_one(outputs, parameters, weighted))
    except RuntimeError as error:
        raise UnsupportedLayerError(f"autograd cannot differentiate this model: {error}") from error
    plan = try_stand_ins(plan, outputs.detach(), forward)
    while True:
        capture = forward(plan)
        check_repeatable(capture.outputs.detach(), outputs.detach())
        differing = capture.refused or _differing(generator, capture, cotangent, weights, plain)
        if not differing:
            return tuple(plan)
        for layer_id, reason in differing.items():
            plan = promote(plan, layer_id, reason, generator.model, generator.layer_collection)


def _last_alone(generator: Generator, batch: Batch, n: int) -> Tensor:
    """The outputs of the last example alone."""
    try:
        return generator.outputs(select_examples(batch, slice(n - 1, n)), 1)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnsupportedLayerError(f"the model cannot be called on one example alone: {error}") from error


def _random_cotangent(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """An output gradient (n, ...) and a weight for each example, the same each time."""
    source = torch.Generator().manual_seed(0)
    cotangent = torch.randn(outputs.shape, generator=source, dtype=result_dtype(outputs.dtype)).to(outputs)
    weights = torch.linspace(1, 2, len(outputs), dtype=result_dtype(outputs.dtype), device=outputs.device)
    return cotangent, weights


def _differing(
    generator: Generator, capture: Capture, cotangent: Tensor, weights: Tensor, plain: Tensor
) -> dict[str, str]:
    """The layers whose Jacobian cannot be read, or whose sum w J is not the plain gradient, with the reason."""
    try:
        jacobians = capture.layer_jacobians(cotangent.unsqueeze(0), keep_graph=False)
    except UnsupportedLayerError:
        if not capture.refused:
            raise
        return capture.refused
    found = {layer_id: jacobian.vjp(weights.unsqueeze(0)) for layer_id, jacobian in jacobians.items()}
    return differing_layers(found, plain, generator.layer_collection)
