"""Layers without inputs or without outputs: some of their parameters are none, and nothing else is special about them."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import FIM, PMat, PVector, UnsupportedOperationError
from nngeo_core.testing import fisher, relative_error
from nngeo_reprs import PMatEye


class Narrow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch: there is nothing to initialize
            self.without_outputs, self.without_inputs, self.usual = nn.Linear(3, 0), nn.Linear(0, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.without_inputs(self.without_outputs(x)) + self.usual(x)
        return found


REPRESENTATIONS = (
    "dense",
    "blockdiag",
    "diag",
    "quasidiag",
    "kfac",
    "kfac-reduce",
    "ekfac",
    "ekfac-reduce",
    "lowrank",
    "auto",
)
EXACT = ("dense", "lowrank")
R = 0.1


def shifted(matrix: PMat) -> Tensor:
    return (matrix + PMatEye(layer_collection=matrix.layer_collection, scaling=R)).get_dense_tensor()  # type: ignore[no-any-return]


def damped(dense: Tensor) -> Tensor:
    return dense + R * torch.eye(len(dense), dtype=dense.dtype)


def rebuilt(matrix: PMat) -> Tensor:
    found = matrix.eigendecomposition()
    vectors = found.vectors()
    return (vectors.T * found.values) @ vectors


OPERATIONS: dict[str, tuple[Callable[[PMat, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "mv": (lambda M, v: M.mv(v[None])[0], lambda A, v: A @ v),
    "solve": (lambda M, v: M.solve(v[None], R)[0], lambda A, v: torch.linalg.solve(damped(A), v)),
    "inverse": (
        lambda M, v: M.inverse(R).get_dense_tensor(),
        lambda A, v: torch.linalg.inv(damped(A)),
    ),
    "logdet": (lambda M, v: M.logdet(R), lambda A, v: torch.logdet(damped(A))),
    "largest": (lambda M, v: M.norm(2), lambda A, v: torch.linalg.matrix_norm(A, 2)),
    "fro": (lambda M, v: M.norm(), lambda A, v: torch.linalg.matrix_norm(A)),
    "trace": (lambda M, v: M.trace(), lambda A, v: A.trace()),
    "diagonal": (lambda M, v: M.get_diag(), lambda A, v: A.diagonal()),
    "eigendecomposition": (lambda M, v: rebuilt(M), lambda A, v: A),
    "root": (lambda M, v: M.sqrt().get_dense_tensor() @ M.sqrt().get_dense_tensor(), lambda A, v: A),
    "pinv": (lambda M, v: A_pinv_A(M), lambda A, v: A),
    "plus": (lambda M, v: (M + M).get_dense_tensor(), lambda A, v: 2 * A),
    "shift": (lambda M, v: shifted(M), lambda A, v: damped(A)),
    "blocks": (
        lambda M, v: M.convert("blockdiag").solve(v[None], R)[0],
        lambda A, v: torch.linalg.solve(damped(A * blocks(len(A))), v),
    ),
}


def A_pinv_A(matrix: PMat) -> Tensor:
    dense = matrix.get_dense_tensor()
    return dense @ matrix.pinv().get_dense_tensor() @ dense  # type: ignore[no-any-return]


def blocks(d: int) -> Tensor:
    return torch.block_diag(torch.ones(2, 2), torch.ones(d - 2, d - 2)).double()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_operations_agree_with_the_dense_matrix(representation: str, operation: str) -> None:
    torch.manual_seed(0)
    model, x = Narrow().double(), torch.randn(6, 3, dtype=torch.float64)
    matrix: PMat = FIM(model, x, representation, variant="regression")
    names = [name for name, _ in matrix.layer_collection.named_parameters(model)]
    dense, exact = matrix.get_dense_tensor(), fisher(model, x, names, "regression")
    if representation in EXACT:
        assert relative_error(dense, exact) <= 1e-10
    assert relative_error(dense.diagonal(), exact.diagonal()) <= (1e-10 if "kfac" not in representation else 1.0)
    mine, theirs = OPERATIONS[operation]
    v = torch.randn(len(dense), dtype=torch.float64)
    try:
        found = mine(matrix, v)
    except UnsupportedOperationError:
        assert representation == "quasidiag" or operation in ("eigendecomposition", "blocks", "shift")
        return
    assert relative_error(found, theirs(dense, v)) <= 1e-9


def test_products_without_a_matrix() -> None:
    torch.manual_seed(0)
    model, x = Narrow().double(), torch.randn(6, 3, dtype=torch.float64)
    implicit, dense = FIM(model, x, ["implicit", "dense"], variant="regression")
    v = PVector.from_model(model).detach().clone()
    for found, expected in ((implicit.mv(v), dense.mv(v)), (implicit.solve(v, R), dense.solve(v, R))):
        assert relative_error(found.get_flat_representation(), expected.get_flat_representation()) <= 1e-9
