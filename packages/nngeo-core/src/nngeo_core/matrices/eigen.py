"""Eigendecomposition: eigenvalues, and eigenvectors made when asked for."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.vectors.pvector import PVector

__all__ = ["Eigendecomposition"]


@dataclass(frozen=True, eq=False)
class Eigendecomposition:
    """M = sum_k w_k u_k u_k^T for orthonormal u_k, or its part over some of the eigenvalues.

    A factored representation keeps its eigenvectors factored; they are written out when asked for.

    Args:
        layer_collection: What M is about.
        values: Eigenvalues w, shape (k,), ascending.
        rows: Returns the eigenvectors of the eigenvalues at given places, shape (m, d) for places (m,).
        residuals: Bounds of |M u_k - w_k u_k| where an iteration found them, shape (k,); else None.
        outside: The eigenvalue, 0-dimensional, of all that is orthogonal to these eigenvectors, where they are not all of M's
            and nothing else is known of the others; else None.

    Example:
        >>> from nngeo_core.layers.layer import LinearLayer
        >>> layers = LayerCollection({"fc": LinearLayer(2, 1, bias=False)})
        >>> found = Eigendecomposition(layers, torch.tensor([1.0, 3.0]), lambda places: torch.eye(2)[places])
        >>> found.vector(1).get_flat_representation()
        tensor([0., 1.])
    """

    layer_collection: LayerCollection
    values: Tensor
    rows: Callable[[Tensor], Tensor]
    residuals: Tensor | None = None
    outside: Tensor | None = None

    def vectors(self, places: slice = slice(None)) -> Tensor:
        """The eigenvectors of the chosen eigenvalues as rows, shape (m, d)."""
        return self.rows(torch.arange(len(self.values), device=self.values.device)[places])

    def vector(self, place: int) -> PVector:
        """The eigenvector of one eigenvalue; -1 for the largest."""
        chosen = torch.arange(len(self.values), device=self.values.device)[place]
        return PVector(self.layer_collection, vector_repr=self.rows(chosen.unsqueeze(0))[0])

    def leading(self, k: int | None) -> "Eigendecomposition":
        """The part over the k largest eigenvalues, all of them for None.

        Raises:
            ValueError: k is not between 1 and their number.
            UnsupportedOperationError: An eigenvalue whose eigenvectors are not stored is larger than one of them.
        """
        if k is None:
            return self
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(self.values):
            raise ValueError(f"k is how many eigenvalues to take, 1 to {len(self.values)}; got {k!r}")
        first = len(self.values) - k
        if self.outside is not None and self.outside > self.values[first]:
            raise UnsupportedOperationError(
                f"an eigenvector of the eigenvalue {float(self.outside):.2g} is among the {k} leading ones and is not stored, "
                "outside of the span of a low-rank matrix as it is; eigendecomposition() has those in the span, or "
                "convert('dense')"
            )
        residuals = None if self.residuals is None else self.residuals[first:]
        return Eigendecomposition(
            self.layer_collection,
            self.values[first:],
            lambda places: self.rows(places + first),
            residuals,
            self.outside,
        )
