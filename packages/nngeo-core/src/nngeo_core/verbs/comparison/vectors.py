"""Vectors v uniform on the unit sphere, with the exact products F v that everything is compared with."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.plugins import registry
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.populate import collect
from nngeo_core.vectors.pvector import PVector
from nngeo_core.verbs.comparison.clock import Clock, with_bar

__all__ = ["Probes", "exact_products"]


@dataclass(frozen=True, eq=False)
class Probes:
    """Vectors with their exact products.

    Attributes:
        layer_collection: What they are about.
        vectors: v, shape (k, d), each of length 1.
        products: F v, shape (k, d).
        block_products: The products with the diagonal blocks F_ll of the layers, shape (k, d); None if they were not wanted.
        traces: The trace of each layer's block, shape (layers,), float64.
        n_examples: n.
        clock: Times of the products.
    """

    layer_collection: LayerCollection
    vectors: Tensor
    products: Tensor
    block_products: Tensor | None
    traces: Tensor
    n_examples: int
    clock: Clock


def exact_products(
    generator: Generator,
    examples: Any,
    count: int,
    per_layer: bool,
    source: torch.Generator,
    progress: bool,
) -> Probes:
    """Draw vectors, and take their products with F: one pass over the examples for each, by the matrix-free operator.

    Args:
        generator: Differentiates the model.
        examples: One batch or a loader that can be iterated again and again.
        count: k, how many vectors.
        per_layer: Whether to take the products with the layers' blocks too: in the pass that takes their traces.
        source: Source of randomness.
        progress: Whether to show progress bars.
    """
    layers = generator.layer_collection
    exact: Any = registry.representation("implicit")(generator, examples=examples)
    vectors = uniform_on_sphere(count, layers.numel(), exact.dtype, exact.device, source)
    sums = BlockSums(layers, vectors if per_layer and len(layers) > 1 else vectors[:0])
    ((traces, blocks),) = collect(generator, examples, [sums], "exact blocks" if progress else False)
    products, clock = torch.empty_like(vectors), Clock(exact.device)
    for k in with_bar(range(count), "exact products", progress):
        product = clock.timed("mv", partial(exact.mv, PVector(layers, vector_repr=vectors[k])))
        products[k] = product.get_flat_representation()
    if len(layers) == 1:
        blocks = products
    return Probes(layers, vectors, products, blocks if per_layer else None, traces, sums.n_examples, clock)


def uniform_on_sphere(
    count: int, size: int, dtype: torch.dtype, device: torch.device, source: torch.Generator
) -> Tensor:
    """Independent vectors of length 1 in all directions alike, shape (count, size).

    Example:
        >>> vectors = uniform_on_sphere(2, 3, torch.float64, torch.device("cpu"), torch.Generator().manual_seed(0))
        >>> vectors.norm(dim=1)
        tensor([1., 1.], dtype=torch.float64)
    """
    vectors = torch.empty(count, size, dtype=dtype, device=device)
    for row in vectors:
        row.copy_(torch.randn(size, dtype=dtype, device=source.device, generator=source))
        row /= euclidean_norm(row)
    return vectors


class BlockSums(Accumulator):
    """Sums what F's diagonal blocks are known by: the traces of J_l^T J_l, and the products J_l^T (J_l v_l), for each layer l.

    Args:
        layer_collection: The layers.
        vectors: v, shape (k, d).
    """

    signed = True

    def __init__(self, layer_collection: LayerCollection, vectors: Tensor) -> None:
        super().__init__(layer_collection)
        self.vectors = vectors
        self.sums["traces"] = torch.zeros(len(layer_collection), dtype=torch.float64, device=vectors.device)
        self.sums["products"] = torch.zeros_like(vectors)

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add each layer's; one that was not called adds nothing."""
        for number, (layer_id, place) in enumerate(self.layer_collection.slices().items()):
            jacobian = batch.layers.get(layer_id)
            if jacobian is None:
                continue
            self.sums["traces"][number] += batch.sign * jacobian.squared_norm().double()
            for v, total in zip(self.vectors, self.sums["products"], strict=True):
                pushed = jacobian.jvp(v[place].to(jacobian.dtype))
                total[place] += batch.sign * jacobian.vjp(pushed).to(total)

    def finalize(self) -> tuple[Tensor, Tensor]:
        """The traces, shape (layers,), and F_ll v_l side by side, shape (k, d)."""
        return self.average("traces"), self.average("products")
