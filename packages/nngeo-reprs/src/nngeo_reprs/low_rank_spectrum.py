"""Symmetric matrices that are a multiple of the identity outside of a small space."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nngeo_core.linear_algebra.symmetric import eigh

__all__ = ["Spectrum"]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """M = sum_k w_k u_k u_k^T + shift (I - sum_k u_k u_k^T).

    Attributes:
        values: w, shape (m,), ascending.
        vectors: Orthonormal rows u_k, shape (m, d) with m at most d.
        shift: The eigenvalue of all that is orthogonal to them, 0-dimensional.
    """

    values: Tensor
    vectors: Tensor
    shift: Tensor

    @classmethod
    def of_rows(cls, rows: Tensor) -> "Spectrum":
        """That of J^T J for rows J (k, d): from the singular values of J, whose Gram matrix would square the condition."""
        _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
        return cls(values.square().flip(0), vectors.flip(0), rows.new_zeros(()))

    @classmethod
    def of_sum(cls, parts: Sequence["Spectrum"]) -> "Spectrum":
        """That of a sum of such matrices, by a decomposition in the space of all their vectors together."""
        weights = torch.cat([part.values - part.shift for part in parts])
        shift = torch.stack([part.shift for part in parts]).sum()
        basis, triangle = torch.linalg.qr(torch.cat([part.vectors for part in parts]).T)
        values, vectors = eigh((triangle * weights) @ triangle.T)
        return cls(values + shift, (basis @ vectors).T.contiguous(), shift)

    @property
    def outside(self) -> int:
        """How many dimensions are orthogonal to the vectors."""
        return self.vectors.shape[1] - len(self.values)

    def all_values(self) -> Tensor:
        """Each eigenvalue once or more, the shift last if it is one: shape (m,) or (m + 1,)."""
        return torch.cat((self.values, self.shift.unsqueeze(0))) if self.outside else self.values

    def with_values(self, all_values: Tensor) -> "Spectrum":
        """The same eigenvectors with other eigenvalues, as `all_values` has them."""
        m = len(self.values)
        values, order = all_values[:m].sort()
        return Spectrum(values, self.vectors[order], all_values[m] if self.outside else torch.zeros_like(self.shift))

    def apply(self, v: Tensor, all_values: Tensor) -> Tensor:
        """f(M) v for v (..., d) and the values that f takes."""
        m = len(self.values)
        inside = v @ self.vectors.T
        found = (inside * all_values[:m]) @ self.vectors
        if self.outside and all_values[m] != 0:
            found = found + all_values[m] * self.complement(v)
        return found

    def complement(self, v: Tensor) -> Tensor:
        """What of v (..., d) is orthogonal to the vectors; taken twice, so that it is so to rounding of what is left."""
        for _ in range(2):
            v = v - (v @ self.vectors.T) @ self.vectors
        return v

    def block(self, place: slice) -> Tensor:
        """A matrix with the eigenvalues of a diagonal block of M other than the shift, of order m or the block's."""
        columns, weights = self.vectors[:, place], self.values - self.shift
        if columns.shape[1] > len(columns):  # the block is a multiple of the identity outside the span of its m columns
            _, columns = torch.linalg.qr(columns.T, mode="r")
            columns = columns.T
        found = (columns.T * weights) @ columns
        found.diagonal().add_(self.shift)
        return found
