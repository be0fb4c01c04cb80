"""Eigendecompositions of Kronecker factors: which eigenvalues are zero, and that all that is computed from them agrees."""

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import LayerCollection, random_pvector
from nngeo_core.linear_algebra.symmetric import eigh
from nngeo_reprs.factor_eigh import factor_eigh
from nngeo_reprs.kfac import PMatKFAC

WIDE = 24
DTYPES = [torch.float32, torch.float64]


def moment(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Their second moment, shape (W, W)."""
    rows = rows.to(dtype)
    return rows.T @ rows / len(rows)


def few_examples(case: str, n: int, width: int) -> Tensor:
    """Inputs (n, W) whose second moment has rank n."""
    rows = torch.randn(n, width, dtype=torch.float64)
    if case == "nearly dead units":
        rows = rows.relu()
        rows[:, ::3] *= 10 ** (-5 * torch.rand(len(rows[0, ::3]), dtype=torch.float64))
    if case == "dead units":
        rows[:, :5] = 0
    scales = {"tiny": 1e-12, "huge": 1e12}
    return rows * scales.get(case, 1.0) ** 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [3, 15])
@pytest.mark.parametrize("case", ["normal", "nearly dead units", "dead units", "tiny", "huge"])
def test_a_moment_of_few_examples_has_as_many_eigenvalues_as_examples(case: str, n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matrix = moment(few_examples(case, n, WIDE), dtype)
    values, vectors = factor_eigh(matrix)
    assert int((values == 0).sum()) == WIDE - n
    rounding = 50 * torch.finfo(dtype).eps * float(values.max())
    torch.testing.assert_close((vectors * values) @ vectors.T, matrix, rtol=0, atol=rounding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 7, WIDE - 1])
def test_small_inputs_beside_a_large_one_are_not_zero(place: int, dtype: torch.dtype) -> None:
    """Their moments are within rounding of the largest, and known to many digits for all that."""
    torch.manual_seed(0)
    rows = torch.randn(200, WIDE, dtype=torch.float64)
    rows[:, place] *= torch.finfo(dtype).eps ** -0.5
    matrix = moment(rows, dtype)
    expected, _ = eigh(matrix)
    assert expected[:-1].max() < 8 * torch.finfo(dtype).eps * expected[-1]
    torch.testing.assert_close(factor_eigh(matrix)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_eigenvalues_with_others_near_are_left(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(WIDE, WIDE, dtype=torch.float64)).Q
    matrix = ((basis * 10.0 ** -torch.arange(WIDE, dtype=torch.float64)) @ basis.T).to(dtype)
    torch.testing.assert_close(factor_eigh(matrix)[0], eigh(matrix)[0], rtol=0, atol=0)


def test_each_matrix_of_a_batch_is_seen_by_itself() -> None:
    torch.manual_seed(0)
    single = [moment(torch.randn(n, WIDE), torch.float64) for n in (3, 2 * WIDE, 20)]
    values, _ = factor_eigh(torch.stack(single))
    assert (values == 0).sum(-1).tolist() == [WIDE - 3, 0, 4]


@pytest.mark.parametrize("examples", [5, 15])
@pytest.mark.parametrize("regul", [1e-3, 3e-6])
def test_solutions_inverse_and_logdet_agree_in_float32(regul: float, examples: int) -> None:
    torch.manual_seed(0)
    layers = LayerCollection.from_model(nn.Linear(WIDE, 4, bias=False))
    inputs, outputs = (torch.randn(n, w, dtype=torch.float64) for n, w in ((examples, WIDE), (20, 4)))
    exact = [moment(rows, torch.float64) for rows in (inputs / 3, outputs)]
    dense = torch.kron(exact[1], exact[0])
    damped = dense + regul * torch.eye(len(dense), dtype=torch.float64)
    F = PMatKFAC(data={"": (exact[0].float(), exact[1].float())}, layer_collection=layers)
    v = random_pvector(layers)
    expected = torch.linalg.solve(damped, v.get_flat_representation().double())
    for found in (F.solve(v, regul), F.inverse(regul).mv(v)):
        error = found.get_flat_representation().double() - expected
        assert error.norm() <= 1e-5 * expected.norm()
    assert abs(float(F.logdet(regul)) - float(torch.logdet(damped))) <= 1e-3
