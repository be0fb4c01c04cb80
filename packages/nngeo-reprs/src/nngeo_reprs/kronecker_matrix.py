"""KroneckerMatrix: what matrices whose blocks have Kronecker-factored eigenvectors share."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import LayerCollectionMismatchError
from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.linear_algebra.damping import check_definite, check_invertible
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.matrices.eigen import Eigendecomposition
from nngeo_core.matrices.pmat import PMat
from nngeo_reprs.kronecker_basis import EigenBlock

__all__ = ["KroneckerMatrix", "block_name"]


class KroneckerMatrix(PMat):
    """One block for each layer, with eigenvectors u_g (x) u_a; cross-layer blocks are zero.

    A subclass says how its data make these blocks, and what it does without them; solving, inverting, shifting, spectrum,
    log-determinant and samples follow from the eigenvalues.
    """

    data: Mapping[str, Any]

    @abstractmethod
    def _eigenblocks(self) -> Mapping[str, EigenBlock]:
        """The blocks of a symmetric matrix in their eigenbases; of a factored one computed once."""

    @abstractmethod
    def _eigen_kind(self) -> type[PMat]:
        """The representation whose data such blocks are."""

    @abstractmethod
    def _layout(self, layer_id: str) -> KroneckerLayout:
        """Where a layer's matrix V (q, G, A) lies in its flat parameters."""

    @abstractmethod
    def _diagonal(self, layer_id: str) -> Tensor:
        """The diagonal of a layer's block, shape (q, G, A)."""

    @abstractmethod
    def _block(self, layer_id: str, split_weight_bias: bool) -> Tensor:
        """A layer's block, shape (d_l, d_l)."""

    def _data_description(self) -> dict[str, Any]:
        return {layer_id: asdict(self._layout(layer_id)) for layer_id in self.data}

    def _mapping_of_layers(self, data: Any) -> Mapping[str, Any]:
        """The data, if it is a mapping with the collection's layers in order."""
        if not isinstance(data, Mapping) or list(data) != list(self.layer_collection):
            given = list(data) if isinstance(data, Mapping) else type(data).__name__
            raise LayerCollectionMismatchError(
                f"the data of a {type(self).__name__} is a mapping with the layers {list(self.layer_collection)}, got "
                f"{given}"
            )
        return data

    def _in_eigenbasis(
        self, change: Callable[[str, EigenBlock], Tensor], n_examples: int | None = None, symmetric: bool = True
    ) -> Any:
        """A matrix with the same eigenvectors and other eigenvalues."""
        blocks = {
            layer_id: EigenBlock(block.basis, change(layer_id, block))
            for layer_id, block in self._eigenblocks().items()
        }
        return self._eigen_kind()(
            self.generator,
            data=blocks,
            layer_collection=self.layer_collection,
            n_examples=n_examples,
            symmetric=symmetric,
            likelihood=self.likelihood,
        )

    def _by_layer(self, v: Tensor, act: Callable[[str, Tensor], Tensor]) -> Tensor:
        """Apply a function of each layer's matrix (..., q, G, A) to v (..., d)."""
        found = torch.empty_like(v)
        for layer_id, place in self.layer_collection.slices().items():
            layout = self._layout(layer_id)
            layout.write(act(layer_id, layout.to_matrix(v[..., place])), found[..., place])
        return found

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        return self._by_layer(v, lambda layer_id, matrix: self._divided(layer_id, matrix, regul))

    def _divided(self, layer_id: str, matrix: Tensor, regul: float) -> Tensor:
        """A layer's (B + regul I)^-1 V, with all eigenvectors of its block B."""
        block = self._eigenblocks()[layer_id]
        return EigenBlock(block.basis, self._inverted(layer_id, block, regul)).multiply(matrix)

    def _inverted(self, layer_id: str, block: EigenBlock, regul: float) -> Tensor:
        damped = block.values + regul
        check_invertible(damped, regul, block_name(layer_id))
        return damped.reciprocal_()

    def _inverse(self, regul: float) -> Any:
        return self._in_eigenbasis(lambda layer_id, block: self._inverted(layer_id, block, regul))

    def _add_identity(self, scaling: Tensor) -> Any:
        self._check_symmetric("the sum with a multiple of the identity", "add the products mv of both")
        return self._in_eigenbasis(lambda _, block: block.values + scaling.to(block.values), self.n_examples)

    def _eigenvalues(self) -> Tensor:
        return torch.cat([block.values.flatten() for block in self._eigenblocks().values()])

    def _eigendecomposition(self, k: int | None) -> Eigendecomposition:
        values, order = self._eigenvalues().sort()

        def rows(places: Tensor) -> Tensor:
            chosen = order[places]
            whole = values.new_zeros(len(chosen), len(values))
            for layer_id, place in self.layer_collection.slices().items():
                if place.start == place.stop:
                    continue
                basis = self._eigenblocks()[layer_id].basis
                here = (chosen >= place.start) & (chosen < place.stop)
                units = torch.nn.functional.one_hot(chosen[here] - place.start, place.stop - place.start).to(values)
                whole[here, place] = basis.layout.from_matrix(basis.matrix(units.unflatten(-1, basis.shape)))
            return whole

        return Eigendecomposition(self.layer_collection, values, rows).leading(k)

    def _definite(self, regul: float) -> dict[str, Tensor]:
        """The eigenvalues of M + regul I of each layer, if all are positive."""
        damped = {layer_id: block.values + regul for layer_id, block in self._eigenblocks().items()}
        for layer_id, values in damped.items():
            check_definite(values, regul, block_name(layer_id))
        return damped

    def _logdet(self, regul: float) -> Tensor:
        return torch.stack([values.log().sum() for values in self._definite(regul).values()]).sum()

    def _sample(self, regul: float, generator: torch.Generator | None) -> Tensor:
        parts = []
        for layer_id, values in self._definite(regul).items():
            basis = self._eigenblocks()[layer_id].basis
            normal = self._normal(tuple(values.shape), generator)
            parts.append(basis.layout.from_matrix(basis.matrix(normal / values.sqrt())))
        return torch.cat(parts)

    def frobenius_norm(self) -> Tensor:
        """The Frobenius norm, 0-dimensional: that of the layers' norms."""
        return euclidean_norm(torch.stack(list(self._norm_per_layer().values())))

    def _blocks(self) -> dict[str, Tensor]:
        return {layer_id: self._block(layer_id, split_weight_bias=True) for layer_id in self.data}

    def get_diag(self, split_weight_bias: bool = True) -> Tensor:
        """The diagonal, shape (d,).

        Args:
            split_weight_bias: Order each layer's weights before its biases, as flat parameters are; otherwise each output's
                bias follows its weights.
        """
        parts = []
        for layer_id in self.data:
            block = self._diagonal(layer_id)
            parts.append(self._layout(layer_id).from_matrix(block) if split_weight_bias else block.flatten())
        return torch.cat(parts)

    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """All entries, shape (d, d).

        Args:
            split_weight_bias: Order each layer's weights before its biases, as flat parameters are; otherwise each output's
                bias follows its weights.
        """
        d = self.layer_collection.numel()
        dense = torch.zeros(d, d, dtype=self.dtype, device=self.device)
        for layer_id, place in self.layer_collection.slices().items():
            dense[place, place] = self._block(layer_id, split_weight_bias)
        return dense


def block_name(layer_id: str) -> str:
    """What errors call a layer's block."""
    return f"the block of layer '{layer_id}'"
