"""PMatDense: all d x d entries."""

from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import NonFiniteError, ShapeError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.linear_algebra.symmetric import add_gram_, mirror_
from nngeo_core.matrices.pmat import PMat
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_reprs.damping import Solver, factorize

__all__ = ["PMatDense"]


class DenseAccumulator(Accumulator):
    """Sums J^T J over all layers at once; half of it, since it is symmetric."""

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add the rows of all examples and directions."""
        sizes = {layer_id: layer.numel() for layer_id, layer in self.layer_collection.items()}
        if "matrix" not in self.sums:
            self.sums["matrix"] = _zeros(sum(sizes.values()), batch.dtype, batch.device)
        rows = batch.to_dense(sizes).flatten(0, 1)
        add_gram_(self.sums["matrix"], rows)

    def finalize(self) -> Tensor:
        """F, shape (d, d)."""
        return mirror_(self.average("matrix"))


def _zeros(d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        return torch.zeros(d, d, dtype=dtype, device=device)
    except RuntimeError as error:
        raise MemoryError(
            f"a dense matrix of {d} x {d} takes {d * d * dtype.itemsize / 2**30:.0f} GiB, and there is less; use the "
            "diagonal, KFAC, or generator.product(v, loader) for exact products"
        ) from error


class PMatDense(PMat):
    """All entries of F = (1/n) sum_i J_i^T L_i J_i, cross-layer ones included. Exact; memory d^2, `solve` d^3 once.

    `data` is a tensor (d, d) in the order of the layer collection.

    Example:
        >>> from nngeo_core import LayerCollection, LinearLayer, PVector
        >>> layers = LayerCollection({"fc": LinearLayer(2, 1, bias=False)})
        >>> F = PMatDense(data=torch.tensor([[4.0, 2.0], [2.0, 2.0]]), layer_collection=layers)
        >>> F.solve(PVector(layers, vector_repr=torch.tensor([6.0, 4.0])), regul=0).get_flat_representation()
        tensor([1., 1.])
    """

    name = "dense"
    accumulator = DenseAccumulator
    exact_entries = "all"
    data: Tensor
    _solver: tuple[float, Solver] | None = None

    def _checked(self, data: Any) -> Tensor:
        d = self.layer_collection.numel()
        if not isinstance(data, Tensor) or data.shape != (d, d):
            given = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
            raise ShapeError(f"the data of a PMatDense is a tensor of shape {(d, d)}, got {given}")
        if not all_finite(data):
            raise NonFiniteError("the data of a PMatDense has NaN or infinite entries")
        return data

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> int:
        """d^2, for all layers together."""
        return layers.numel() ** 2

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the entries."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        """The device of the entries."""
        return self.data.device

    def _mv(self, v: Tensor) -> Tensor:
        return v @ self.data.T

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        if self._solver is None or self._solver[0] != regul:
            self._solver = (regul, factorize(self.data, regul, self.symmetric))
        return self._solver[1](v.reshape(-1, v.shape[-1]).T).T.reshape(v.shape)

    def _inverse(self, regul: float) -> "PMatDense":
        identity = torch.eye(len(self.data), dtype=self.dtype, device=self.device)
        inverse = factorize(self.data, regul, self.symmetric)(identity)
        return self._like((inverse + inverse.T) / 2 if self.symmetric else inverse, self.symmetric)

    def _mm(self, other: "PMatDense") -> "PMatDense":
        return self._like(self.data @ other.data, symmetric=False)

    def _add(self, other: "PMatDense") -> "PMatDense":
        return self._like(self.data + other.data, self.symmetric and other.symmetric)

    def _scaled(self, scalar: float | Tensor) -> "PMatDense":
        return self._like(self.data * scalar, self.symmetric, self.n_examples)

    def trace(self) -> Tensor:
        """The trace, 0-dimensional."""
        return self.data.trace()

    def frobenius_norm(self) -> Tensor:
        """The Frobenius norm, 0-dimensional."""
        norm: Tensor = torch.linalg.matrix_norm(self.data)
        return norm

    def get_diag(self) -> Tensor:
        """A copy of the diagonal, shape (d,)."""
        return self.data.diagonal().clone()

    def get_dense_tensor(self) -> Tensor:
        """The stored tensor itself, shape (d, d)."""
        return self.data
