"""Linear functions that run without a graph, differentiated by their transposes."""

import torch

from nngeo_core.linear_algebra.linear_map import apply_linear, apply_quadratic


def test_the_derivative_is_the_transpose_any_number_of_times() -> None:
    matrix = torch.randn(3, 3, dtype=torch.float64)
    rows = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def act(v: torch.Tensor) -> torch.Tensor:
        assert not v.requires_grad
        return v @ matrix.T

    def run(v: torch.Tensor) -> torch.Tensor:
        return apply_linear(act, lambda u: u.detach() @ matrix, v)

    assert torch.equal(run(rows), rows.detach() @ matrix.T)
    assert torch.autograd.gradcheck(run, rows)
    assert torch.autograd.gradgradcheck(lambda v: run(v).square(), rows)


def test_a_quadratic_form_and_its_derivatives() -> None:
    rows = torch.randn(3, 3, dtype=torch.float64)
    matrix, v = rows @ rows.T, torch.randn(3, dtype=torch.float64, requires_grad=True)

    def run(v: torch.Tensor) -> torch.Tensor:
        return apply_quadratic(lambda v: v @ matrix @ v, lambda rows: rows.detach() @ matrix, v)

    assert torch.allclose(run(v), v @ matrix @ v)
    assert torch.autograd.gradcheck(run, v)
    assert torch.autograd.gradgradcheck(run, v)
