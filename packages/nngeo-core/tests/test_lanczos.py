"""Lanczos against dense eigenvalues, multiple ones too."""

import pytest
import torch
from torch import Tensor

from nngeo_core import ConvergenceError, NonFiniteError
from nngeo_core.linear_algebra.lanczos import leading_eigenpairs, spectral_norm

CPU = torch.device("cpu")


def _matrix(eigenvalues: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    d = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    found: Tensor = (basis * torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    return ((found + found.T) / 2).to(dtype)


SPECTRA = {
    "distinct": [float(k) for k in range(40)],
    "multiple": [5.0] * 3 + [4.0] * 2 + [0.1 * k for k in range(30)],
    "identity": [2.0] * 12,
    "low-rank": [0.0] * 30 + [3.0, 3.0, 7.0],
    "zero": [0.0] * 5,
    "indefinite": [-9.0, -1.0, 0.0, 1.0, 2.0, 3.0],
    "one": [4.0],
    "tiny": [1e-12 * k for k in range(20)],
    "huge": [1e12 * k for k in range(20)],
}


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_leading_eigenpairs_with_their_multiplicities(spectrum: str, k: int) -> None:
    matrix = _matrix(SPECTRA[spectrum])
    k = min(k, len(matrix))
    found = leading_eigenpairs(lambda rows: rows @ matrix, len(matrix), k, torch.float64, CPU)
    scale = float(matrix.norm())
    expected = torch.tensor(sorted(SPECTRA[spectrum])[-k:], dtype=torch.float64)
    assert (found.values - expected).abs().max() <= 1e-12 * scale
    assert (found.vectors @ found.vectors.T - torch.eye(k, dtype=torch.float64)).abs().max() <= 1e-12
    residuals = (found.vectors @ matrix - found.values.unsqueeze(1) * found.vectors).norm(dim=1)
    assert (residuals <= found.residuals + 1e-14 * scale).all()
    assert (found.residuals <= 1e-9 * scale).all()


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_spectral_norm_and_its_bound(spectrum: str) -> None:
    matrix = _matrix(SPECTRA[spectrum])
    value, bound = spectral_norm(lambda rows: rows @ matrix, len(matrix), torch.float64, CPU)
    expected = torch.linalg.matrix_norm(matrix, 2)
    assert abs(value - expected) <= max(float(bound), 1e-14 * float(expected)) <= 1e-10 * max(float(expected), 1e-300)


def test_float32_ends_at_its_own_rounding() -> None:
    matrix = _matrix(SPECTRA["distinct"], torch.float32)
    found = leading_eigenpairs(lambda rows: rows @ matrix, 40, 2, torch.float32, CPU)
    assert found.vectors.dtype == torch.float32
    assert (found.values - torch.tensor([38.0, 39.0])).abs().max() <= 1e-4


def test_no_ghosts_after_many_steps() -> None:
    matrix = torch.diag(torch.cat((torch.tensor([100.0]), torch.linspace(0, 1, 60))).double())
    found = leading_eigenpairs(lambda rows: rows @ matrix, 61, 2, torch.float64, CPU, tol=1e-13)
    assert found.values.tolist() == pytest.approx([1.0, 100.0], rel=1e-12)


def test_too_few_products_raise() -> None:
    matrix = _matrix([1 + 1e-3 * k for k in range(60)])
    with pytest.raises(ConvergenceError, match=r"left a residual of .* after 10 products.*give a larger tol, or more"):
        leading_eigenpairs(lambda rows: rows @ matrix, 60, 2, torch.float64, CPU, max_products=10)


@pytest.mark.parametrize("k", [0, 4, True, 1.0])
def test_k_is_between_one_and_d(k: int) -> None:
    with pytest.raises(ValueError, match="k is how many eigenvalues to take, 1 to 3"):
        leading_eigenpairs(lambda rows: rows, 3, k, torch.float64, CPU)


def test_infinite_products_are_refused() -> None:
    with pytest.raises(NonFiniteError, match="has a NaN or an infinity"):
        spectral_norm(lambda rows: rows * float("nan"), 3, torch.float64, CPU)
