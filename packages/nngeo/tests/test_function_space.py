"""Parameter space and function space are two sides of one Jacobian: F = J^T J / n and K = J J^T."""

import pytest
import torch

from nngeo import FIM, GramMatrix, Jacobian, PMatImplicit, random_pvector
from nngeo_core.testing import MODELS, relative_error


@pytest.mark.parametrize("model", ["mlp", "conv", "positions-sequence", "called-twice"])
def test_fisher_matrix_and_kernel_have_one_trace_and_one_spectrum(model: str) -> None:
    case = MODELS[model]()
    n = len(case.inputs)
    F = FIM(case.model, case.inputs, "dense", variant="regression")
    K = GramMatrix(case.model, case.inputs, "dense")
    assert relative_error(K.trace() / n, F.trace()) <= 1e-10
    ours = F.eigendecomposition().values.flip(0)
    theirs = K.eigendecomposition().values.flip(0) / n
    k = min(len(ours), len(theirs))
    assert (ours[:k] - theirs[:k]).abs().max() <= 1e-10 * ours[0]
    assert ours[k:].abs().sum() + theirs[k:].abs().sum() <= 1e-8 * ours[0]


@pytest.mark.parametrize("model", ["mlp", "conv-groups", "tied-weight"])
def test_products_of_a_jacobian_with_itself(model: str) -> None:
    case = MODELS[model]()
    n = len(case.inputs)
    J = Jacobian(case.model, case.inputs)
    F, K = J.T @ J / n, J @ J.T
    exact = FIM(case.model, case.inputs, "dense", variant="regression")
    v = random_pvector(exact.layer_collection, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert isinstance(F, PMatImplicit)
    assert relative_error(F.mv(v).get_flat_representation(), exact.mv(v).get_flat_representation()) <= 1e-10
    assert relative_error(F.trace(), exact.trace()) <= 1e-10
    assert relative_error((K @ (J @ v)).vector_repr, n * (J @ (F @ v)).vector_repr) <= 1e-10
