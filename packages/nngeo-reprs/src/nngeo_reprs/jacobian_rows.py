"""The Jacobians of a small data set in the structure of their layers, as the rows of a wide matrix."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.conjugate_gradients import DEFAULT_TOLERANCE, conjugate_gradients
from nngeo_core.linear_algebra.damping import check_definite
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.linear_algebra.symmetric import eigh

__all__ = ["JacobianRows"]


class JacobianRows:
    """The rows R = n^-1/2 V^T J of all examples and directions, F = R^T S R with a sign for each; never formed as a matrix.

    Args:
        layer_collection: What the columns are.
        batches: The Jacobians of all examples.
    """

    def __init__(self, layer_collection: LayerCollection, batches: Sequence[JacobianBatch]) -> None:
        self.layer_collection = layer_collection
        self.batches = batches
        self.n_examples = sum(batch.n_examples for batch in batches if batch.first_slice)
        self.heights = [(batch.directions.stop - batch.directions.start) * batch.n_examples for batch in batches]

    @property
    def definite(self) -> bool:
        """Whether no row enters with a minus sign."""
        return all(batch.sign > 0 for batch in self.batches)

    def times(self, v: Tensor) -> Tensor:
        """R v, shape (k, rows), for v of shape (k, d)."""
        places, found = self.layer_collection.slices(), []
        for batch, height in zip(self.batches, self.heights, strict=True):
            change = v.new_zeros(len(v), height)
            for layer_id, jacobian in batch.layers.items():
                for total, row in zip(change, v[:, places[layer_id]].to(jacobian.dtype), strict=True):
                    total += jacobian.jvp(row).flatten()
            found.append(change)
        scale: float = self.n_examples**-0.5
        return torch.cat(found, 1) * scale

    def transposed_times(self, u: Tensor) -> Tensor:
        """R^T u, shape (k, d), for u of shape (k, rows)."""
        found = u.new_zeros(len(u), self.layer_collection.numel())
        places = self.layer_collection.slices()
        for batch, part in zip(self.batches, u.split(self.heights, 1), strict=True):
            for layer_id, jacobian in batch.layers.items():
                for total, row in zip(found[:, places[layer_id]], part.to(jacobian.dtype), strict=True):
                    total += jacobian.vjp(row.view(-1, batch.n_examples))
        scale: float = self.n_examples**-0.5
        return found * scale

    @cached_property
    def gram(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, none negative, and eigenvectors of R R^T, shapes (rows,) and (rows, rows)."""
        lines = [
            torch.cat([self._tile(i, j)[0] for j in range(len(self.batches))], 1) for i in range(len(self.batches))
        ]
        values, vectors = eigh(torch.cat(lines))
        return values.clamp(min=0), vectors

    def solve(
        self,
        v: Tensor,
        scaling: Tensor,
        regul: float,
        tol: float = DEFAULT_TOLERANCE,
        max_iterations: int | None = None,
    ) -> Tensor:
        """(c F + r I)^-1 v for v (..., d), c >= 0 and r > 0.

        Woodbury's formula (v - c R^T (c R R^T + r I)^-1 R v) / r cancels where r is small, so that it preconditions conjugate
        gradients, which end after a few steps at a residual within rounding.
        """
        damped, vectors = self._damped(scaling, regul), self.gram[1]

        def products(rows: Tensor) -> Tensor:
            return scaling * self.transposed_times(self.times(rows)) + regul * rows

        def woodbury(rows: Tensor) -> Tensor:
            inside = self.times(rows) @ vectors / damped @ vectors.T
            return (rows - scaling * self.transposed_times(inside)) / regul

        return conjugate_gradients(products, v, woodbury, tol, max_iterations, f"the matrix + {regul:g} I")

    def _damped(self, scaling: Tensor, regul: float) -> Tensor:
        """Eigenvalues of c R R^T + r I, all positive; c F + r I has them, or r."""
        values, d = self.gram[0], self.layer_collection.numel()
        if not regul and len(values) >= d:
            raise UnsupportedOperationError(
                f"without damping, {len(values)} directions do not say what the {d} eigenvalues are; give a regul > 0, or "
                "convert('dense')"
            )
        damped = scaling * values + regul
        check_definite(torch.cat((damped, damped.new_full((1,), regul))), regul, "the matrix")
        return damped

    def logdet(self, scaling: Tensor, regul: float) -> Tensor:
        """log det(c F + r I) = log det(c R R^T + r I) + (d - rows) log r."""
        damped = self._damped(scaling, regul)
        others = self.layer_collection.numel() - len(damped)
        return damped.log().sum() + others * damped.new_tensor(regul).log()

    def sample(self, scaling: Tensor, regul: float, normal: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """x = (c F + r I)^-1 (c^1/2 R^T e + r^1/2 z), of covariance (c F + r I)^-1, shape (d,)."""
        e, z = normal((1, sum(self.heights))), normal((1, self.layer_collection.numel()))
        right = scaling.sqrt() * self.transposed_times(e) + math.sqrt(regul) * z
        return self.solve(right, scaling, regul)[0]

    def norms(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The Frobenius norms of F and of each layer's block, tile by tile."""
        whole: list[tuple[Tensor, int]] = []
        by_layer: dict[str, list[tuple[Tensor, int]]] = {layer_id: [] for layer_id in self.layer_collection}
        for i, rows in enumerate(self.batches):
            for j, columns in enumerate(self.batches):
                (tile, tiles), sign = self._tile(i, j), rows.sign * columns.sign
                whole.append((euclidean_norm(tile), sign))
                for layer_id, part in tiles.items():
                    by_layer[layer_id].append((euclidean_norm(part), sign))
        zero = torch.zeros((), dtype=self.batches[0].dtype, device=self.batches[0].device)
        return _combined(whole, zero), {layer_id: _combined(parts, zero) for layer_id, parts in by_layer.items()}

    def _tile(self, i: int, j: int) -> tuple[Tensor, dict[str, Tensor]]:
        """A tile of R R^T, and each layer's part of it."""
        rows, columns = self.batches[i], self.batches[j]
        tile = torch.zeros(self.heights[i], self.heights[j], dtype=rows.dtype, device=rows.device)
        tiles = {
            layer_id: jacobian.gram(columns.layers[layer_id]).reshape(tile.shape).to(rows.dtype) / self.n_examples
            for layer_id, jacobian in rows.layers.items()
            if layer_id in columns.layers
        }
        for part in tiles.values():
            tile += part
        return tile, tiles


def _combined(parts: Sequence[tuple[Tensor, int]], zero: Tensor) -> Tensor:
    """The root of a sum of squares with signs, of numbers whose squares may leave the range of the dtype."""
    positive, negative = (
        euclidean_norm(torch.stack([zero, *(norm for norm, sign in parts if sign == wanted)])) for wanted in (1, -1)
    )
    return (positive - negative).clamp(min=0).sqrt() * (positive + negative).sqrt()
