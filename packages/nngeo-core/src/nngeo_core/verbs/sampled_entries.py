"""Some entries of F from plain autograd, one backward pass for each example and direction: what `verify` compares with."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nngeo_core.conventions import result_dtype
from nngeo_core.sweep.examples import Batch, count_examples, select_examples
from nngeo_core.sweep.generator import Generator

__all__ = ["pulled_back", "sample_places", "sampled_fisher"]


def sample_places(generator: Generator, count: int) -> Tensor:
    """Places of some parameters with `requires_grad` in the flat vector, in order: the same ones each time."""
    parameters = [p for _, p in generator.layer_collection.named_parameters(generator.model)]
    places = torch.cat([torch.full((p.numel(),), p.requires_grad, device="cpu") for p in parameters]).nonzero()[:, 0]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0), device="cpu")
    return places[order[:count]].sort().values.to(generator.device)


def sampled_fisher(generator: Generator, batch: Batch, places: Tensor) -> Tensor:
    """F between some parameters, shape (k, k).

    Args:
        generator: Knows model, likelihood and layers; its Jacobians are not used.
        batch: Some examples.
        places: Of the parameters in the flat vector, shape (k,).
    """
    n, total = count_examples(batch), torch.zeros((), device="cpu")
    parameters = [p for _, p in generator.layer_collection.named_parameters(generator.model)]
    trainable = [p for p in parameters if p.requires_grad]
    for i in range(n):
        example = select_examples(batch, slice(i, i + 1))
        with torch.enable_grad():
            outputs = generator.outputs(example, 1)
        found, signs = pulled_back(generator, outputs, example, trainable)
        parts = iter(found)
        rows = torch.cat(
            [next(parts).flatten(1) if p.requires_grad else p.new_zeros(len(signs), p.numel()) for p in parameters], 1
        )
        rows = rows[:, places].to(result_dtype(rows.dtype))
        total = total.to(rows) + (rows.T * signs.to(rows)) @ rows
    return total / n


def pulled_back(
    generator: Generator, outputs: Tensor, example: Batch, wanted: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """The derivatives of an example's output directions, shape (c, ...) for each tensor wanted, and their signs (c,)."""
    fixed = outputs.detach()
    c, negative = generator.count_directions(fixed, example)
    directions = generator.directions(fixed, example, slice(0, c)).to(outputs.dtype)
    rows = [
        torch.autograd.grad(outputs, wanted, u, retain_graph=True, allow_unused=True, materialize_grads=True)
        for u in (directions if wanted else ())
    ]
    found = [torch.stack(parts) for parts in zip(*rows, strict=True)]
    return found, torch.where(torch.arange(c, device="cpu") < c - negative, 1.0, -1.0)
