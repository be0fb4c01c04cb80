"""PMatBlockDiag: each layer's diagonal block in full."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import LayerCollectionMismatchError, NonFiniteError, ShapeError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.damping import check_definite, factorize
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.linear_algebra.spectrum import reciprocals, roots
from nngeo_core.linear_algebra.symmetric import eigh
from nngeo_core.matrices.eigen import Eigendecomposition
from nngeo_core.matrices.pmat import PMat
from nngeo_core.sweep.accumulator import Accumulator

__all__ = ["PMatBlockDiag"]


class BlockDiagAccumulator(Accumulator):
    """Sums J^T J of each layer."""

    signed = True

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add each layer's block; a layer that was not called adds nothing."""
        for layer_id, layer in self.layer_collection.items():
            if layer_id in batch.layers:
                moment = batch.layers[layer_id].second_moment().to(batch.dtype)
                self.add(layer_id, moment if batch.sign > 0 else moment.neg_())
                del moment  # or it would still be there beside that of the next layer
            elif layer_id not in self.sums:
                d = layer.numel()
                self.sums[layer_id] = torch.zeros(d, d, dtype=batch.dtype, device=batch.device)

    def finalize(self) -> dict[str, Tensor]:
        """The diagonal blocks of F, each of shape (d_l, d_l)."""
        return {layer_id: self.average(layer_id) for layer_id in self.layer_collection}


class PMatBlockDiag(PMat):
    """The diagonal blocks of F, one for each layer; what is between layers is zero. Exact in the blocks; memory sum_l d_l^2.

    `data` is a mapping from layer id to a tensor (d_l, d_l), in the order of the layer collection.

    Example:
        >>> from nngeo_core import LayerCollection, LinearLayer
        >>> layers = LayerCollection({"a": LinearLayer(2, 1, bias=False), "b": LinearLayer(1, 1, bias=False)})
        >>> PMatBlockDiag(data={"a": torch.ones(2, 2), "b": torch.eye(1)}, layer_collection=layers).get_dense_tensor()
        tensor([[1., 1., 0.],
                [1., 1., 0.],
                [0., 0., 1.]])
    """

    name = "blockdiag"
    accumulator = BlockDiagAccumulator
    exact_entries = "blocks"
    data: dict[str, Tensor]

    def _checked(self, data: Any) -> dict[str, Tensor]:
        if not isinstance(data, Mapping) or list(data) != list(self.layer_collection):
            given = list(data) if isinstance(data, Mapping) else type(data).__name__
            raise LayerCollectionMismatchError(
                f"the data of a PMatBlockDiag is a mapping with the layers {list(self.layer_collection)}, got {given}"
            )
        for layer_id, layer in self.layer_collection.items():
            d, block = layer.numel(), data[layer_id]
            if not isinstance(block, Tensor) or block.shape != (d, d):
                found = tuple(block.shape) if isinstance(block, Tensor) else type(block).__name__
                raise ShapeError(f"layer '{layer_id}': the block is a tensor of shape {(d, d)}, got {found}")
            if not all_finite(block):
                raise NonFiniteError(f"layer '{layer_id}': the block has NaN or infinite entries")
        return dict(data)

    def tensors(self) -> dict[str, Tensor]:
        """The blocks by layer id."""
        return dict(self.data)

    @classmethod
    def _data_restored(
        cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any], layers: LayerCollection
    ) -> dict[str, Tensor]:
        return {layer_id: tensors[layer_id] for layer_id in layers}

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> dict[str, int]:
        """The d_l^2 of each layer."""
        return {layer_id: layer.numel() ** 2 for layer_id, layer in layers.items()}

    @classmethod
    def _made_from(cls, matrix: PMat) -> "PMatBlockDiag":
        return matrix._as(cls, matrix._blocks())

    def _blocks(self) -> dict[str, Tensor]:
        return self.data

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "PMatBlockDiag":
        return self._by_block(change, self.symmetric, self.n_examples)

    def _by_block(
        self, change: Callable[[Tensor], Tensor], symmetric: bool = True, n_examples: int | None = None
    ) -> "PMatBlockDiag":
        return self._like({layer_id: change(block) for layer_id, block in self.data.items()}, symmetric, n_examples)

    def _by_layer(self, v: Tensor, act: Callable[[str, Tensor], Tensor]) -> Tensor:
        """Apply a function of each layer's part (..., d_l) of v (..., d)."""
        parts = [act(layer_id, v[..., place]) for layer_id, place in self.layer_collection.slices().items()]
        return torch.cat(parts, -1)

    def _mv(self, v: Tensor) -> Tensor:
        return self._by_layer(v, lambda layer_id, part: part @ self.data[layer_id].T)

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        def divide(layer_id: str, part: Tensor) -> Tensor:
            what = f"the block of layer '{layer_id}'"
            solver = self._cached(
                ("solver", layer_id), lambda: factorize(self.data[layer_id], regul, self.symmetric, what), regul
            )
            return solver(part.flatten(0, -2).T).T.reshape(part.shape) if part.ndim > 1 else solver(part[:, None])[:, 0]

        return self._by_layer(v, divide)

    def _inverse(self, regul: float) -> "PMatBlockDiag":
        inverses = {}
        for layer_id, block in self.data.items():
            identity = torch.eye(len(block), dtype=self.dtype, device=self.device)
            what = f"the block of layer '{layer_id}'"
            inverse = factorize(block, regul, self.symmetric, what)(identity)
            inverses[layer_id] = (inverse + inverse.T) / 2 if self.symmetric else inverse
        return self._like(inverses, self.symmetric)

    def _mm(self, other: "PMatBlockDiag") -> "PMatBlockDiag":
        products = {layer_id: block @ other.data[layer_id] for layer_id, block in self.data.items()}
        return self._like(products, symmetric=False)

    def _add(self, other: "PMatBlockDiag") -> "PMatBlockDiag":
        sums = {layer_id: block + other.data[layer_id] for layer_id, block in self.data.items()}
        return self._like(sums, self.symmetric and other.symmetric)

    def _add_identity(self, scaling: Tensor) -> "PMatBlockDiag":
        def shifted(block: Tensor) -> Tensor:
            return block + torch.eye(len(block), dtype=block.dtype, device=block.device) * scaling.to(block)

        return self._by_block(shifted, self.symmetric, self.n_examples)

    def _scaled(self, scalar: float | Tensor) -> "PMatBlockDiag":
        return self._by_block(lambda block: block * scalar, self.symmetric, self.n_examples)

    def _eigh(self) -> dict[str, tuple[Tensor, Tensor]]:
        return self._cached("eigh", lambda: {layer_id: eigh(block) for layer_id, block in self.data.items()})

    def _eigenvalues(self) -> Tensor:
        return torch.cat([values for values, _ in self._eigh().values()])

    def _eigendecomposition(self, k: int | None) -> Eigendecomposition:
        values, order = self._eigenvalues().sort()

        def rows(places: Tensor) -> Tensor:
            whole = torch.block_diag(*[vectors.T for _, vectors in self._eigh().values()])
            chosen: Tensor = whole[order[places]]
            return chosen

        return Eigendecomposition(self.layer_collection, values, rows).leading(k)

    def _singular_values(self, what: str) -> Tensor:
        if self.symmetric:
            return super()._singular_values(what)
        return torch.cat([torch.linalg.svdvals(block) for block in self.data.values()])

    def _sample(self, regul: float, generator: torch.Generator | None) -> Tensor:
        parts = []
        for layer_id, (values, vectors) in self._eigh().items():
            check_definite(values + regul, regul, f"the block of layer '{layer_id}'")
            parts.append(vectors @ (self._normal((len(values),), generator) / (values + regul).sqrt()))
        return torch.cat(parts)

    def _sqrt(self) -> "PMatBlockDiag":
        found = {}
        for layer_id, (values, vectors) in self._eigh().items():
            found[layer_id] = vectors * roots(values, len(values), f"the block of layer '{layer_id}'") @ vectors.T
        return self._like(found)

    def _pinv(self) -> "PMatBlockDiag":
        if not self.symmetric:
            eps = torch.finfo(self.dtype).eps
            return self._by_block(lambda block: torch.linalg.pinv(block, rtol=len(block) * eps), symmetric=False)
        found = {
            layer_id: vectors * reciprocals(values, len(values)) @ vectors.T
            for layer_id, (values, vectors) in self._eigh().items()
        }
        return self._like(found)

    def trace(self) -> Tensor:
        """The trace, 0-dimensional."""
        return torch.stack([block.trace() for block in self.data.values()]).sum()

    def frobenius_norm(self) -> Tensor:
        """The Frobenius norm, 0-dimensional."""
        return euclidean_norm(torch.stack(list(self._norm_per_layer().values())))

    def _norm_per_layer(self) -> dict[str, Tensor]:
        return {layer_id: euclidean_norm(block) for layer_id, block in self.data.items()}

    def get_diag(self) -> Tensor:
        """The diagonal, shape (d,)."""
        return torch.cat([block.diagonal() for block in self.data.values()])

    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """All entries, shape (d, d), those between layers zero.

        Args:
            split_weight_bias: Flat parameters have a layer's weights before its biases: always true of this representation.
        """
        whole: Tensor = torch.block_diag(*self.data.values())
        return whole
