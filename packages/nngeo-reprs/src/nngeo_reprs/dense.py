"""PMatDense: all d x d entries."""

from typing import overload

import torch
from torch import Tensor

from nngeo_core.conventions import DEFAULT_REGUL, checked_regul
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.damping import check_definite, check_invertible, factorize
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.linear_algebra.spectrum import reciprocals, roots
from nngeo_core.linear_algebra.symmetric import add_gram_, eigh, mirror_
from nngeo_core.matrices.eigen import Eigendecomposition
from nngeo_core.matrices.pmat import PMat
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.vectors.pvector import PVector

__all__ = ["PMatDense"]


class DenseAccumulator(Accumulator):
    """Sums J^T J over all layers at once; half of it, since it is symmetric."""

    signed = True

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add the rows of all examples and directions."""
        sizes = {layer_id: layer.numel() for layer_id, layer in self.layer_collection.items()}
        if "matrix" not in self.sums:
            self.sums["matrix"] = _zeros(sum(sizes.values()), batch.dtype, batch.device)
        rows = batch.to_dense(sizes).flatten(0, 1)
        add_gram_(self.sums["matrix"], rows, batch.sign)

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

    def _data_shape(self) -> tuple[int, int]:
        return (self.layer_collection.numel(),) * 2

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> int:
        """d^2, for all layers together."""
        return layers.numel() ** 2

    @classmethod
    def _made_from(cls, matrix: PMat) -> "PMatDense":
        return matrix._as(cls, matrix._entries())

    def _mv(self, v: Tensor) -> Tensor:
        return v @ self.data.T

    @overload
    def solve(self, v: PVector, regul: float | Tensor = ..., impl: str = ...) -> PVector: ...
    @overload
    def solve(self, v: Tensor, regul: float | Tensor = ..., impl: str = ...) -> Tensor: ...
    def solve(
        self, v: PVector | Tensor, regul: float | Tensor = DEFAULT_REGUL, impl: str = "solve"
    ) -> PVector | Tensor:
        """(M + regul I)^-1 v; the factorization is kept for further right-hand sides, until another `regul`.

        Args:
            v: A vector; or a batch of flat ones, a tensor (k, d) or (c, n, d).
            regul: The damping r.
            impl: "solve" for Cholesky or LU factors of M + r I; "eigh" for the eigenvectors of M, which serve every r.

        Raises:
            ValueError: `regul` is negative or no single number, or `impl` is another name.
            LayerCollectionMismatchError: v is about other layers.
            NotPositiveDefiniteError: M + regul I is singular to working precision.
            UnsupportedOperationError: M is a product, which has no orthonormal eigenvectors.
        """
        if impl not in ("solve", "eigh"):
            raise ValueError(f"impl is 'solve' or 'eigh', got {impl!r}")
        checked, act = checked_regul(regul), self._solve if impl == "solve" else self._solve_by_eigenvectors
        found: PVector | Tensor = self._on_vectors(lambda rows: act(rows, checked), v)
        return found

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        solver = self._cached("solver", lambda: factorize(self.data, regul, self.symmetric), regul)
        return solver(v.reshape(-1, v.shape[-1]).T).T.reshape(v.shape)

    def _solve_by_eigenvectors(self, v: Tensor, regul: float) -> Tensor:
        self._check_symmetric("an eigendecomposition", "solve(v, impl='solve') needs none")
        values, vectors = self._eigh()
        check_invertible(values + regul, regul, "the matrix")
        return (v @ vectors / (values + regul)) @ vectors.T

    def _eigh(self) -> tuple[Tensor, Tensor]:
        return self._cached("eigh", lambda: eigh(self.data))

    def _eigendecomposition(self, k: int | None) -> Eigendecomposition:
        values, vectors = self._eigh()
        return Eigendecomposition(self.layer_collection, values, lambda places: vectors.T[places]).leading(k)

    def _eigenvalues(self) -> Tensor:
        return self._eigh()[0]

    def _singular_values(self, what: str) -> Tensor:
        if self.symmetric:
            return super()._singular_values(what)
        values: Tensor = torch.linalg.svdvals(self.data)
        return values

    def _sample(self, regul: float, generator: torch.Generator | None) -> Tensor:
        values, vectors = self._eigh()
        check_definite(values + regul, regul, "the matrix")
        return vectors @ (self._normal((len(values),), generator) / (values + regul).sqrt())

    def _sqrt(self) -> "PMatDense":
        values, vectors = self._eigh()
        return self._like(vectors * roots(values, len(values), "the matrix") @ vectors.T)

    def _pinv(self) -> "PMatDense":
        if not self.symmetric:
            inverse = torch.linalg.pinv(self.data, rtol=len(self.data) * torch.finfo(self.dtype).eps)
            return self._like(inverse, symmetric=False)
        values, vectors = self._eigh()
        return self._like(vectors * reciprocals(values, len(values)) @ vectors.T)

    def _inverse(self, regul: float) -> "PMatDense":
        identity = torch.eye(len(self.data), dtype=self.dtype, device=self.device)
        inverse = factorize(self.data, regul, self.symmetric)(identity)
        return self._like((inverse + inverse.T) / 2 if self.symmetric else inverse, self.symmetric)

    def _mm(self, other: "PMatDense") -> "PMatDense":
        return self._like(self.data @ other.data, symmetric=False)

    def _add(self, other: "PMatDense") -> "PMatDense":
        return self._like(self.data + other.data, self.symmetric and other.symmetric)

    def _add_identity(self, scaling: Tensor) -> "PMatDense":
        shifted = self.data.clone()
        shifted.diagonal().add_(scaling.to(shifted))
        return self._like(shifted, self.symmetric, self.n_examples)

    def _scaled(self, scalar: float | Tensor) -> "PMatDense":
        return self._like(self.data * scalar, self.symmetric, self.n_examples)

    def trace(self) -> Tensor:
        """The trace, 0-dimensional."""
        return self.data.trace()

    def frobenius_norm(self) -> Tensor:
        """The Frobenius norm, 0-dimensional."""
        return euclidean_norm(self.data)

    def _norm_per_layer(self) -> dict[str, Tensor]:
        return {layer_id: euclidean_norm(block) for layer_id, block in self._blocks().items()}

    def get_diag(self) -> Tensor:
        """A copy of the diagonal, shape (d,)."""
        return self.data.diagonal().clone()

    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """The stored tensor itself, shape (d, d).

        Args:
            split_weight_bias: Flat parameters have a layer's weights before its biases: always true of this representation.
        """
        return self.data
