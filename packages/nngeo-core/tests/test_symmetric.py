"""Gram sums over half the entries, and eigendecompositions that check themselves."""

import pytest
import torch
from torch import Tensor

from nngeo_core import NonFiniteError
from nngeo_core.linear_algebra.symmetric import add_gram_, eigh, mirror_
from nngeo_core.testing import relative_error


def _rows(k: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(k, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("d", [1, 5, 511, 512, 513, 1024, 1100, 1537])
def test_gram_sums_are_the_matrix_product(d: int) -> None:
    parts = [_rows(3, d), _rows(1, d, seed=1), _rows(0, d)]
    matrix = torch.zeros(d, d, dtype=torch.float64)
    for rows in parts:
        add_gram_(matrix, rows)
    rows = torch.cat(parts)
    full = mirror_(matrix)
    assert full is matrix
    assert relative_error(full, rows.T @ rows) <= 1e-14
    assert relative_error(full.T, full) <= 1e-15
    add_gram_(matrix, parts[0], sign=-1)
    assert relative_error(mirror_(matrix), parts[1].T @ parts[1]) <= 1e-13


def test_rows_need_not_be_contiguous() -> None:
    rows, matrix = _rows(700, 6).T, torch.zeros(700, 700, dtype=torch.float64)
    add_gram_(matrix, rows)
    assert relative_error(mirror_(matrix), rows.T @ rows) <= 1e-14


@pytest.mark.parametrize("shape", [(1, 1), (6, 6), (3, 6, 6), (2, 1, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_eigh_rebuilds_the_matrix(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    rows = torch.randn(shape, dtype=dtype)
    matrix, eps = rows + rows.mT, torch.finfo(dtype).eps
    values, vectors = eigh(matrix)
    assert (values.dtype, vectors.dtype, values.shape) == (dtype, dtype, shape[:-1])
    assert relative_error((vectors * values.unsqueeze(-2)) @ vectors.mT, matrix) <= 10 * shape[-1] * eps
    assert relative_error(vectors.mT @ vectors, torch.eye(shape[-1]).expand(shape)) <= 10 * shape[-1] * eps
    assert (values.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_negative_eigenvalues_within_rounding_of_zero_are_zero(dtype: torch.dtype) -> None:
    rows = torch.randn(3, 50, dtype=dtype)
    values, _ = eigh(1e3 * rows.T @ rows)
    assert (values >= 0).all()
    assert values[:47].max() <= 50 * torch.finfo(dtype).eps * values[-1]
    assert (values[47:] > 0).all()


def test_small_positive_eigenvalues_are_kept() -> None:
    """Zeroed, they would be missing from every damped solve."""
    values, _ = eigh(torch.diag(torch.tensor([1.0] + [5e-5] * 999)))
    assert relative_error(values[:999], torch.full((999,), 5e-5)) <= 1e-6


def test_degenerate_matrices() -> None:
    for matrix in (torch.zeros(4, 4), torch.eye(4), torch.ones(4, 4), -2 * torch.eye(4)):
        values, vectors = eigh(matrix)
        assert relative_error((vectors * values) @ vectors.T, matrix) <= 1e-6
        assert relative_error(vectors.T @ vectors, torch.eye(4)) <= 1e-6


def test_only_the_symmetric_part_counts() -> None:
    matrix = torch.tensor([[1.0, 4.0], [0.0, 1.0]])
    assert eigh(matrix)[0].tolist() == pytest.approx([-1, 3])


def test_what_fails_in_float32_is_done_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = torch.linalg.eigh

    def fails(matrix: Tensor) -> tuple[Tensor, Tensor]:
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return genuine(matrix)

    def is_wrong(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = genuine(matrix)
        return (values * 1.01 if matrix.dtype == torch.float32 else values), vectors

    rows = torch.randn(9, 6)
    matrix = rows.T @ rows
    for replacement in (fails, is_wrong):
        monkeypatch.setattr(torch.linalg, "eigh", replacement)
        values, vectors = eigh(matrix)
        assert values.dtype == torch.float32
        assert relative_error((vectors * values) @ vectors.T, matrix) <= 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_entries_are_refused(bad: float) -> None:
    matrix = torch.eye(3)
    matrix[0, 1] = bad
    with pytest.raises(NonFiniteError, match=r"shape \(3, 3\) with NaN or infinite entries has no eigenvalues"):
        eigh(matrix)
