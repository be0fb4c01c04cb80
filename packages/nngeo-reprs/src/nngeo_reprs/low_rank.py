"""PMatLowRank: the rows of all Jacobians, or the eigenvectors of their span."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import NonFiniteError, ShapeError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.damping import check_definite, check_invertible
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.linear_algebra.spectrum import reciprocals, roots
from nngeo_core.matrices.eigen import Eigendecomposition
from nngeo_core.matrices.pmat import PMat
from nngeo_reprs.low_rank_spectrum import Spectrum
from nngeo_reprs.low_rank_sums import LowRankAccumulator, fewer_rows

__all__ = ["PMatLowRank"]

_SPECTRAL = ("values", "vectors", "shift")


class PMatLowRank(PMat):
    """F = J^T J as the rows J of all examples and directions, scaled by n^-1/2. Exact; memory c n d, `solve` (c n)^2 d once.

    For few examples and directions: the rows are fewer than the parameters, and all algebra is done on their side, through
    one singular value decomposition of J. What is orthogonal to the rows is never dropped: it is damped like the rest
    (Woodbury 1950).

    `data` is a tensor J (k, d), M = J^T J; or a mapping of `"values"` w (m,), orthonormal rows `"vectors"` U (m, d) and a
    0-dimensional `"shift"`, M = U^T diag(w) U + shift (I - U^T U), which differences, inverses and M + c I have. A metric
    with negative curvature is refused: its differences of rows have no accurate singular values; the dense,
    block-diagonal, diagonal and implicit representations take it.

    `eigendecomposition()` is over the span; a k among whose largest eigenvalues would be the shift is refused.

    Example:
        >>> from nngeo_core import LayerCollection, LinearLayer
        >>> layers = LayerCollection({"fc": LinearLayer(3, 1, bias=False)})
        >>> F = PMatLowRank(data=torch.tensor([[3.0, 4.0, 0.0]]), layer_collection=layers)
        >>> F.logdet(regul=1.0).exp()
        tensor(26.0000)
    """

    name = "lowrank"
    accumulator = LowRankAccumulator
    exact_entries = "all"
    data: Tensor | dict[str, Tensor]

    def _checked(self, data: Any) -> Tensor | dict[str, Tensor]:
        d = self.layer_collection.numel()
        rows = data.get("vectors") if isinstance(data, Mapping) else data
        if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != d:
            given = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ShapeError(
                f"the data of a PMatLowRank is a tensor of rows of shape (k, {d}), or a mapping with 'values' (m,), 'vectors' "
                f"(m, {d}) and 'shift' (); got {given}"
            )
        found = _checked_spectrum(data, rows) if isinstance(data, Mapping) else data
        for tensor in [found] if isinstance(found, Tensor) else found.values():
            if not all_finite(tensor):
                raise NonFiniteError("the data of a PMatLowRank has NaN or infinite entries")
        return found

    def tensors(self) -> dict[str, Tensor]:
        """The rows, or values, vectors and shift."""
        return {"data": self.data} if isinstance(self.data, Tensor) else dict(self.data)

    @classmethod
    def _data_restored(
        cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any], layers: LayerCollection
    ) -> Tensor | dict[str, Tensor]:
        return tensors["data"] if "data" in tensors else {name: tensors[name] for name in _SPECTRAL}

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "PMatLowRank":
        if isinstance(self.data, Tensor):
            return self._like(change(self.data), n_examples=self.n_examples)
        return self._like({name: change(tensor) for name, tensor in self.data.items()}, n_examples=self.n_examples)

    def _spectrum(self) -> Spectrum:
        if isinstance(self.data, Tensor):
            return self._cached("spectrum", lambda: Spectrum.of_rows(self.data))  # type: ignore[arg-type]
        return Spectrum(**self.data)

    def _with_values(self, all_values: Tensor, n_examples: int | None = None) -> "PMatLowRank":
        """The same eigenvectors with other eigenvalues."""
        return self._of(self._spectrum().with_values(all_values), n_examples)

    def _of(self, spectrum: Spectrum, n_examples: int | None = None) -> "PMatLowRank":
        return self._like({name: getattr(spectrum, name) for name in _SPECTRAL}, n_examples=n_examples)

    def _mv(self, v: Tensor) -> Tensor:
        if isinstance(self.data, Tensor):
            return (v @ self.data.T) @ self.data
        return self._spectrum().apply(v, self._spectrum().all_values())

    def _quadratic_form(self, v: Tensor) -> Tensor:
        if isinstance(self.data, Tensor):
            return (self.data @ v).square().sum()
        return super()._quadratic_form(v)

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        damped = self._spectrum().all_values() + regul
        check_invertible(damped, regul, "the matrix")
        return self._spectrum().apply(v, 1 / damped)

    def _inverse(self, regul: float) -> "PMatLowRank":
        damped = self._spectrum().all_values() + regul
        check_invertible(damped, regul, "the matrix")
        return self._with_values(1 / damped)

    def _mm(self, other: "PMatLowRank") -> Any:
        self._unsupported(
            "the product of matrices, whose two sides span different spaces,",
            "apply their products mv one after the other, or convert('dense')",
        )

    def _add(self, other: "PMatLowRank") -> "PMatLowRank":
        if isinstance(self.data, Tensor) and isinstance(other.data, Tensor):
            spectrum = Spectrum.of_rows(fewer_rows(torch.cat((self.data, other.data))))
            kept = spectrum.values > (spectrum.values.amax() * _rounding(self) ** 2 if len(spectrum.values) else 0)
            return self._like(spectrum.values[kept].sqrt().unsqueeze(1) * spectrum.vectors[kept])
        return self._of(Spectrum.of_sum([self._spectrum(), other._spectrum()]))

    def _add_identity(self, scaling: Tensor) -> "PMatLowRank":
        return self._with_values(self._spectrum().all_values() + scaling.to(self._spectrum().values), self.n_examples)

    def _scaled(self, scalar: float | Tensor) -> "PMatLowRank":
        if isinstance(self.data, Tensor) and scalar >= 0:
            return self._like(self.data * scalar**0.5, n_examples=self.n_examples)
        return self._with_values(self._spectrum().all_values() * scalar, self.n_examples)

    def _eigendecomposition(self, k: int | None) -> Eigendecomposition:
        spectrum = self._spectrum()
        outside = spectrum.shift if spectrum.outside else None
        return Eigendecomposition(
            self.layer_collection, spectrum.values, lambda places: spectrum.vectors[places], outside=outside
        ).leading(k)

    def _eigenvalues(self) -> Tensor:
        return self._spectrum().all_values()

    def _logdet(self, regul: float) -> Tensor:
        spectrum = self._spectrum()
        damped = spectrum.all_values() + regul
        check_definite(damped, regul, "the matrix")
        inside = damped[: len(spectrum.values)].log().sum()
        return inside + spectrum.outside * damped[-1].log() if spectrum.outside else inside

    def _sample(self, regul: float, generator: torch.Generator | None) -> Tensor:
        spectrum = self._spectrum()
        damped = spectrum.all_values() + regul
        check_definite(damped, regul, "the matrix")
        return spectrum.apply(self._normal((spectrum.vectors.shape[1],), generator), damped.rsqrt())

    def _sqrt(self) -> "PMatLowRank":
        return self._with_values(roots(self._spectrum().all_values(), self.layer_collection.numel(), "the matrix"))

    def _pinv(self) -> "PMatLowRank":
        return self._with_values(reciprocals(self._spectrum().all_values(), self.layer_collection.numel()))

    def trace(self) -> Tensor:
        """The trace, 0-dimensional."""
        if isinstance(self.data, Tensor):
            return self.data.square().sum()
        return self.data["values"].sum() + self._spectrum().outside * self.data["shift"]

    def frobenius_norm(self) -> Tensor:
        """The Frobenius norm, 0-dimensional."""
        return self._block_norm(slice(None))

    def _norm_per_layer(self) -> dict[str, Tensor]:
        return {layer_id: self._block_norm(place) for layer_id, place in self.layer_collection.slices().items()}

    def _block_norm(self, place: slice) -> Tensor:
        """That of a diagonal block, on the smaller side."""
        if isinstance(self.data, Tensor):
            rows = self.data[:, place]
            return euclidean_norm(rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows)
        spectrum = self._spectrum()
        block = spectrum.block(place)
        others = spectrum.vectors[0, place].numel() - len(block) if len(spectrum.vectors) else 0
        return euclidean_norm(torch.stack((euclidean_norm(block), spectrum.shift * others**0.5)))

    def get_diag(self) -> Tensor:
        """The diagonal, shape (d,)."""
        if isinstance(self.data, Tensor):
            return self.data.square().sum(0)
        spectrum = self._spectrum()
        return spectrum.shift + (spectrum.values - spectrum.shift) @ spectrum.vectors.square()

    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """All entries, shape (d, d).

        Args:
            split_weight_bias: Flat parameters have a layer's weights before its biases: always true of this representation.
        """
        if isinstance(self.data, Tensor):
            return self.data.T @ self.data
        return self._spectral_block(slice(None))

    def _blocks(self) -> dict[str, Tensor]:
        places = self.layer_collection.slices()
        if isinstance(self.data, Tensor):
            parts = {layer_id: self.data[:, place] for layer_id, place in places.items()}
            return {layer_id: part.T @ part for layer_id, part in parts.items()}
        return {layer_id: self._spectral_block(place) for layer_id, place in places.items()}

    def _spectral_block(self, place: slice) -> Tensor:
        spectrum = self._spectrum()
        columns = spectrum.vectors[:, place]
        block = (columns.T * (spectrum.values - spectrum.shift)) @ columns
        block.diagonal().add_(spectrum.shift)
        return block


def _rounding(matrix: PMatLowRank) -> float:
    return matrix.layer_collection.numel() * torch.finfo(matrix.dtype).eps


def _checked_spectrum(data: Mapping[str, Any], vectors: Tensor) -> dict[str, Tensor]:
    m = len(vectors)
    shapes = {"values": (m,), "vectors": tuple(vectors.shape), "shift": ()}
    given = {name: tuple(tensor.shape) for name, tensor in data.items()}
    if given != shapes or m > vectors.shape[1]:
        raise ShapeError(f"the spectral data of a PMatLowRank has tensors of shapes {shapes}, got {given}")
    probe = torch.linspace(1, 2, m, dtype=vectors.dtype, device=vectors.device)
    if m and not (vectors @ (probe @ vectors) - probe).norm() <= torch.finfo(vectors.dtype).eps ** 0.5 * probe.norm():
        raise ValueError("the 'vectors' of a PMatLowRank are orthonormal rows, and these are not; give rows J instead")
    return {name: data[name] for name in _SPECTRAL}
