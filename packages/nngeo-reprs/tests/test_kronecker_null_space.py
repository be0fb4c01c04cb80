"""Solving beside the null space of an input factor: against the dense matrix, and where it must not be done."""

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import FIM, LayerCollection, random_pvector
from nngeo_core.errors import NotPositiveDefiniteError
from nngeo_core.jacobians.layout import KroneckerFactors, KroneckerLayout
from nngeo_reprs.kfac import PMatKFAC
from nngeo_reprs.kronecker_basis import spectrum
from nngeo_reprs.kronecker_null_space import null_width, solve_beside_null_space

WIDE = 24


def factors(inputs: Tensor, outputs: Tensor) -> KroneckerFactors:
    """Factors of a layer without bias."""
    groups, width = inputs.shape[:2]
    return KroneckerFactors(inputs, outputs, KroneckerLayout(groups, outputs.shape[-1], width, has_bias=False))


def moment(rank: int, width: int, groups: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """A second moment of so many rows, shape (groups, width, width)."""
    rows = torch.randn(groups, rank, width, dtype=dtype)
    return rows.mT @ rows / rank


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_it_solves_as_the_dense_matrix_does(groups: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    given = factors(moment(5, WIDE, groups), moment(20, 4, groups))
    found = spectrum(given)
    null = null_width(found)
    assert null == WIDE - 5
    matrix = torch.randn(*shape, groups, 4, WIDE, dtype=torch.float64)
    solved = solve_beside_null_space(found, null, matrix.clone(), 1e-3, "a block")
    for q in range(groups):
        dense = torch.kron(given.outputs[q], given.inputs[q]) + 1e-3 * torch.eye(4 * WIDE, dtype=torch.float64)
        expected = torch.linalg.solve(dense, matrix[..., q, :, :].flatten(-2).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(solved[..., q, :, :].flatten(-2), expected, rtol=1e-9, atol=1e-9)


def test_groups_of_different_rank_share_the_smallest_null_space() -> None:
    torch.manual_seed(0)
    given = factors(torch.cat((moment(5, WIDE), moment(8, WIDE))), moment(9, 4, 2))
    found = spectrum(given)
    assert null_width(found) == WIDE - 8
    matrix = torch.randn(2, 4, WIDE, dtype=torch.float64)
    solved = solve_beside_null_space(found, WIDE - 8, matrix.clone(), 1e-3, "a block")
    for q in range(2):
        damped = torch.kron(given.outputs[q], given.inputs[q]) + 1e-3 * torch.eye(4 * WIDE, dtype=torch.float64)
        expected = torch.linalg.solve(damped, matrix[q].flatten())
        torch.testing.assert_close(solved[q].flatten(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["full rank", "less than half", "decaying", "indefinite", "diagonal"])
def test_it_is_left_alone(case: str) -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(WIDE, WIDE, dtype=torch.float64)).Q
    decaying = 10.0 ** -torch.arange(WIDE, dtype=torch.float64)
    indefinite = torch.cat((torch.tensor([-1.0, -1.0, 1.0, 1.0]), torch.zeros(WIDE - 4))).double()
    inputs = {
        "full rank": moment(2 * WIDE, WIDE),
        "less than half": moment(WIDE // 2 + 1, WIDE),
        "decaying": ((basis * decaying) @ basis.T)[None],
        "indefinite": ((basis * indefinite) @ basis.T)[None],
        "diagonal": torch.ones(1, WIDE, dtype=torch.float64),
    }[case]
    assert null_width(spectrum(factors(inputs, moment(9, 4)))) == 0


def test_a_factor_of_zeros_divides_by_the_damping() -> None:
    torch.manual_seed(0)
    found = spectrum(factors(torch.zeros(1, WIDE, WIDE, dtype=torch.float64), moment(9, 4)))
    matrix = torch.randn(1, 4, WIDE, dtype=torch.float64)
    assert null_width(found) == WIDE
    solved = solve_beside_null_space(found, WIDE, matrix.clone(), 1e-2, "a block")
    torch.testing.assert_close(solved, matrix / 1e-2, rtol=1e-12, atol=0)


def test_a_damping_that_is_lost_in_rounding_is_refused() -> None:
    torch.manual_seed(0)
    found = spectrum(factors(moment(5, WIDE), moment(9, 4)))
    with pytest.raises(NotPositiveDefiniteError, match="a block"):
        solve_beside_null_space(found, WIDE - 5, torch.ones(1, 4, WIDE, dtype=torch.float64), 1e-20, "a block")


@pytest.mark.parametrize("regul", [1e-1, 1e-3, 1e-5])
def test_kfac_of_a_wide_layer_on_few_examples(regul: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    F = FIM(model, torch.randn(7, 40, dtype=torch.float64), PMatKFAC)
    v = random_pvector(F.layer_collection, dtype=torch.float64)
    dense = F.get_dense_tensor()
    damped = dense + regul * torch.eye(len(dense), dtype=torch.float64)
    expected = torch.linalg.solve(damped, v.get_flat_representation())
    torch.testing.assert_close(F.solve(v, regul).get_flat_representation(), expected, rtol=1e-8, atol=1e-8)


def test_what_lies_along_the_eigenvectors_is_as_exact_as_with_all_of_them() -> None:
    """In float32, for a vector in the span of the inputs, whose solution is small beside rounding divided by the damping."""
    torch.manual_seed(0)
    exact = factors(moment(5, WIDE), moment(20, 4))
    single = factors(exact.inputs.float(), exact.outputs.float())
    found = spectrum(single)
    null = null_width(found)
    assert null == WIDE - 5
    matrix = (torch.randn(1, 4, WIDE, dtype=torch.float64) @ exact.inputs).float()
    block = found.block()
    errors = []
    dense = torch.kron(exact.outputs[0], exact.inputs[0])
    damped = dense + 1e-4 * torch.eye(len(dense), dtype=torch.float64)
    expected = torch.linalg.solve(damped, matrix.double().flatten())
    for solved in (
        solve_beside_null_space(found, null, matrix.clone(), 1e-4, "a block"),
        block.basis.matrix(block.basis.coordinates(matrix) / (block.values + 1e-4)),
    ):
        error = solved.double().flatten() - expected
        errors.append(float(error @ dense @ error))
    assert errors[0] <= 4 * errors[1] + 1e-12


def test_a_collection_with_layers_of_both_kinds() -> None:
    torch.manual_seed(0)
    layers = LayerCollection.from_model(nn.Sequential(nn.Linear(30, 3, bias=False), nn.Linear(3, 2, bias=False)))
    F = PMatKFAC(data={"0": (moment(4, 30), moment(9, 3)), "1": (moment(9, 3), moment(9, 2))}, layer_collection=layers)
    v = random_pvector(layers, dtype=torch.float64)
    dense = F.get_dense_tensor()
    expected = torch.linalg.solve(
        dense + 1e-2 * torch.eye(len(dense), dtype=torch.float64), v.get_flat_representation()
    )
    torch.testing.assert_close(F.solve(v, 1e-2).get_flat_representation(), expected, rtol=1e-9, atol=1e-9)
