"""PMatSpectrumContract: what follows from a matrix's eigenvalues, checked against its own dense tensor. Needs pytest."""

from collections.abc import Callable
from typing import ClassVar, TypeVar

import pytest
import torch

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.matrices.pmat import PMat
from nngeo_core.testing.oracles import relative_error

__all__ = ["OPTIONAL_OPERATIONS", "PMatSpectrumContract", "TOLERANCE"]

T = TypeVar("T")

TOLERANCE = 1e-10
"""Relative error of everything in float64."""

OPTIONAL_OPERATIONS = frozenset(
    {
        "add_identity",
        "eigendecomposition",
        "largest_singular_value",
        "logdet",
        "norm_per_layer",
        "pinv",
        "sample",
        "smallest_singular_value",
        "sqrt",
    }
)
"""What a representation need not implement: the base raises in its place."""

DRAWS = 1000


class PMatSpectrumContract:
    """Norms, eigenvectors, roots, pseudo-inverses, determinants and samples of a fixture `matrix`.

    Each must be right to 1e-10 (roots and inverses by their residuals), or be listed in `unsupported` and raise
    `UnsupportedOperationError` with a message that says, after a semicolon, what to do.
    """

    unsupported: ClassVar[frozenset[str]] = frozenset()
    """Among `"eigendecomposition"`, `"largest_singular_value"`, `"smallest_singular_value"`, `"norm_per_layer"`, `"logdet"`,
    `"pinv"`, `"sample"`, `"sqrt"`, and those of `PMatAlgebraContract`."""

    def test_largest_singular_value(self, matrix: PMat) -> None:
        """`norm(2)` is the spectral norm."""
        found = self.attempt("largest_singular_value", lambda: matrix.norm(2))
        if found is not None:
            assert found.ndim == 0
            assert relative_error(found, torch.linalg.matrix_norm(matrix.get_dense_tensor(), 2)) <= TOLERANCE

    def test_smallest_singular_value(self, matrix: PMat) -> None:
        """`norm(-2)` is the smallest singular value, to rounding of the largest."""
        found = self.attempt("smallest_singular_value", lambda: matrix.norm(-2))
        if found is not None:
            values = torch.linalg.svdvals(matrix.get_dense_tensor())
            assert abs(found - values[-1]) <= TOLERANCE * values[0]

    def test_norms_by_name(self, matrix: PMat) -> None:
        """`norm()` is the Frobenius norm, and an unknown one is refused."""
        assert torch.equal(matrix.norm(), matrix.frobenius_norm())
        assert torch.equal(matrix.norm("fro"), matrix.frobenius_norm())
        with pytest.raises(ValueError, match=r"norm\(ord\) takes 'fro', 2 or -2; got 'nuc'"):
            matrix.norm("nuc")

    def test_per_layer(self, matrix: PMat) -> None:
        """`trace_per_layer` and `norm_per_layer` are those of the layers' diagonal blocks."""
        dense, traces = matrix.get_dense_tensor(), matrix.trace_per_layer()
        norms = self.attempt("norm_per_layer", matrix.norm_per_layer)
        assert list(traces) == list(matrix.layer_collection)
        scale = float(dense.norm())
        for layer_id, place in matrix.layer_collection.slices().items():
            block = dense[place, place]
            assert abs(traces[layer_id] - block.trace()) <= TOLERANCE * scale
            assert norms is None or abs(norms[layer_id] - block.norm()) <= TOLERANCE * scale

    def test_eigendecomposition(self, matrix: PMat) -> None:
        """M u = w u for orthonormal u, all eigenvalues ascending; the leading ones alone; k is checked."""
        found = self.attempt("eigendecomposition", matrix.eigendecomposition)
        if found is None:
            return
        dense, vectors = matrix.get_dense_tensor(), found.vectors()
        k = len(found.values)
        scale = float(found.values.abs().max())
        assert (found.values.diff() >= 0).all()
        assert (vectors @ dense - found.values.unsqueeze(1) * vectors).norm() <= TOLERANCE * max(scale, 1e-300)
        assert (vectors @ vectors.T - torch.eye(k, dtype=dense.dtype)).norm() <= TOLERANCE * k
        expected = torch.linalg.eigvalsh(dense)
        assert (found.values - expected[len(expected) - k :]).abs().max() <= TOLERANCE * scale
        leading = matrix.eigendecomposition(1)
        assert abs(leading.values[0] - expected[-1]) <= TOLERANCE * scale
        assert (
            matrix.mv(leading.vector(-1)) - float(leading.values[0]) * leading.vector(0)
        ).norm() <= TOLERANCE * scale
        with pytest.raises(ValueError, match="k is how many eigenvalues to take"):
            matrix.eigendecomposition(0)

    def test_sqrt(self, matrix: PMat) -> None:
        """R R = M for a symmetric positive semidefinite R."""
        root = self.attempt("sqrt", matrix.sqrt)
        if root is not None:
            r, dense = root.get_dense_tensor(), matrix.get_dense_tensor()
            assert relative_error(r @ r, dense) <= TOLERANCE
            assert relative_error(r.T, r) <= TOLERANCE
            assert torch.linalg.eigvalsh(r)[0] >= -TOLERANCE * r.norm()

    def test_pinv(self, matrix: PMat) -> None:
        """The four conditions of Penrose, each to rounding of the condition number."""
        inverse = self.attempt("pinv", matrix.pinv)
        if inverse is not None:
            p, dense = inverse.get_dense_tensor(), matrix.get_dense_tensor()
            condition = float(p.norm() * dense.norm())
            assert (dense @ p @ dense - dense).norm() <= 1e-13 * condition * dense.norm()
            assert (p @ dense @ p - p).norm() <= 1e-13 * condition * p.norm()
            assert (dense @ p - (dense @ p).T).norm() <= 1e-13 * condition
            assert (p @ dense - (p @ dense).T).norm() <= 1e-13 * condition

    def test_logdet(self, matrix: PMat) -> None:
        """`logdet(r)` is the log-determinant of M + r I."""
        dense = matrix.get_dense_tensor()
        for regul in (0.1, 10.0):
            found = self.attempt("logdet", lambda regul=regul: matrix.logdet(regul))  # type: ignore[misc]
            if found is not None:
                expected = torch.linalg.slogdet(dense + regul * torch.eye(len(dense), dtype=dense.dtype))[1]
                assert abs(found - expected) <= TOLERANCE * max(1.0, float(expected.abs()))

    def test_sample(self, matrix: PMat) -> None:
        """Samples whitened by (M + r I)^(1/2) have the identity as covariance, to five standard errors."""
        generator = torch.Generator().manual_seed(1)
        first = self.attempt("sample", lambda: matrix.sample(0.5, generator))
        if first is None:
            return
        dense = matrix.get_dense_tensor()
        draws = torch.stack([matrix.sample(0.5, generator).get_flat_representation() for _ in range(DRAWS)])
        assert draws.dtype == dense.dtype
        values, vectors = torch.linalg.eigh(dense)
        white = draws @ vectors * (values + 0.5).sqrt()
        error = (white.T @ white / DRAWS - torch.eye(len(dense), dtype=dense.dtype)).abs()
        assert float(error.max()) <= 6 * (2 / DRAWS) ** 0.5
        assert float(white.mean(0).abs().max()) <= 6 / DRAWS**0.5
        again = matrix.sample(0.5, torch.Generator().manual_seed(1))
        assert torch.equal(again.get_flat_representation(), first.get_flat_representation())

    def attempt(self, operation: str, run: Callable[[], T]) -> T | None:
        """The result; None for an unsupported operation, which must raise and name what to do instead."""
        if operation not in self.unsupported:
            return run()
        with pytest.raises(UnsupportedOperationError, match=r"; .*\w") as caught:
            run()
        assert caught.value.args
        return None
