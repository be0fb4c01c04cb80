"""PMatDiag: the diagonal alone."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.damping import check_definite, check_invertible
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.linear_algebra.spectrum import reciprocals, roots
from nngeo_core.matrices.eigen import Eigendecomposition
from nngeo_core.matrices.pmat import PMat
from nngeo_core.sweep.accumulator import Accumulator

__all__ = ["PMatDiag"]


class DiagAccumulator(Accumulator):
    """Sums the squares of each layer's Jacobian, in its place of one flat vector."""

    signed = True

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add each layer's squares; a layer that was not called adds nothing."""
        if _SQUARES not in self.sums:
            d = self.layer_collection.numel()
            self.sums[_SQUARES] = torch.zeros(d, dtype=batch.dtype, device=batch.device)
        places = self.layer_collection.slices()
        for layer_id, jacobian in batch.layers.items():
            total = self.sums[_SQUARES][places[layer_id]]
            if batch.sign > 0:
                jacobian.add_squares_to(total)
            else:
                total -= jacobian.sum_of_squares()

    def finalize(self) -> Tensor:
        """The diagonal of F, shape (d,)."""
        return self.average(_SQUARES)


_SQUARES = "squares"
"""Name of the sum."""


class PMatDiag(PMat):
    """The diagonal of F; all other entries are zero. Exact on the diagonal and the trace; memory d.

    `data` is a tensor (d,) in the order of the layer collection.

    Example:
        >>> from nngeo_core import LayerCollection, LinearLayer
        >>> layers = LayerCollection({"fc": LinearLayer(2, 1, bias=False)})
        >>> PMatDiag(data=torch.tensor([1.0, 2.0]), layer_collection=layers).get_dense_tensor()
        tensor([[1., 0.],
                [0., 2.]])
    """

    name = "diag"
    accumulator = DiagAccumulator
    exact_entries = "diagonal"
    data: Tensor

    def _data_shape(self) -> tuple[int]:
        return (self.layer_collection.numel(),)

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> dict[str, int]:
        """One for each parameter."""
        return {layer_id: layer.numel() for layer_id, layer in layers.items()}

    @classmethod
    def _made_from(cls, matrix: PMat) -> "PMatDiag":
        return matrix._as(cls, matrix.get_diag())

    def _mv(self, v: Tensor) -> Tensor:
        return v * self.data

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        return v / self._damped(regul)

    def _inverse(self, regul: float) -> "PMatDiag":
        return self._like(1 / self._damped(regul))

    def _damped(self, regul: float) -> Tensor:
        damped = self.data + regul
        check_invertible(damped, regul, "the diagonal", exact=True)
        return damped

    def _eigendecomposition(self, k: int | None) -> Eigendecomposition:
        values, order = self.data.sort()
        d = len(values)
        return Eigendecomposition(
            self.layer_collection, values, lambda places: one_hot(order[places], d).to(values.dtype)
        ).leading(k)

    def _eigenvalues(self) -> Tensor:
        return self.data

    def _logdet(self, regul: float) -> Tensor:
        damped = self.data + regul
        check_definite(damped, regul, "the diagonal", exact=True)
        return damped.log().sum()

    def _sample(self, regul: float, generator: torch.Generator | None) -> Tensor:
        damped = self.data + regul
        check_definite(damped, regul, "the diagonal", exact=True)
        return self._normal(tuple(damped.shape), generator) / damped.sqrt()

    def _sqrt(self) -> "PMatDiag":
        return self._like(roots(self.data, len(self.data), "the diagonal"))

    def _pinv(self) -> "PMatDiag":
        return self._like(reciprocals(self.data, len(self.data)))

    def _add_identity(self, scaling: Tensor) -> "PMatDiag":
        return self._like(self.data + scaling.to(self.data), n_examples=self.n_examples)

    def _norm_per_layer(self) -> dict[str, Tensor]:
        places = self.layer_collection.slices()
        return {layer_id: euclidean_norm(self.data[place]) for layer_id, place in places.items()}

    def _mm(self, other: "PMatDiag") -> "PMatDiag":
        return self._like(self.data * other.data)

    def _add(self, other: "PMatDiag") -> "PMatDiag":
        return self._like(self.data + other.data)

    def _scaled(self, scalar: float | Tensor) -> "PMatDiag":
        return self._like(self.data * scalar, n_examples=self.n_examples)

    def trace(self) -> Tensor:
        """The trace, 0-dimensional."""
        return self.data.sum()

    def frobenius_norm(self) -> Tensor:
        """The Frobenius norm, 0-dimensional."""
        return euclidean_norm(self.data)

    def get_diag(self) -> Tensor:
        """A copy of the diagonal, shape (d,)."""
        return self.data.clone()

    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """The diagonal matrix, shape (d, d).

        Args:
            split_weight_bias: Flat parameters have a layer's weights before its biases: always true of this representation.
        """
        return self.data.diag()
