"""PMatDiag: the diagonal alone."""

from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import NonFiniteError, ShapeError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.matrices.pmat import PMat
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_reprs.damping import check_invertible

__all__ = ["PMatDiag"]


class DiagAccumulator(Accumulator):
    """Sums the squares of each layer's Jacobian, in its place of one flat vector."""

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add each layer's squares; a layer that was not called adds nothing."""
        if _SQUARES not in self.sums:
            d = self.layer_collection.numel()
            self.sums[_SQUARES] = torch.zeros(d, dtype=batch.dtype, device=batch.device)
        places = self.layer_collection.slices()
        for layer_id, jacobian in batch.layers.items():
            jacobian.add_squares_to(self.sums[_SQUARES][places[layer_id]])

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

    def _checked(self, data: Any) -> Tensor:
        d = self.layer_collection.numel()
        if not isinstance(data, Tensor) or data.shape != (d,):
            given = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
            raise ShapeError(f"the data of a PMatDiag is a tensor of shape {(d,)}, got {given}")
        if not all_finite(data):
            raise NonFiniteError("the data of a PMatDiag has NaN or infinite entries")
        return data

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> dict[str, int]:
        """One for each parameter."""
        return {layer_id: layer.numel() for layer_id, layer in layers.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the entries."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        """The device of the entries."""
        return self.data.device

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
        norm: Tensor = torch.linalg.vector_norm(self.data)
        return norm

    def get_diag(self) -> Tensor:
        """A copy of the diagonal, shape (d,)."""
        return self.data.clone()

    def get_dense_tensor(self) -> Tensor:
        """The diagonal matrix, shape (d, d)."""
        return self.data.diag()
