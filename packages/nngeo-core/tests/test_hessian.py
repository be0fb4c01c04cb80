"""The verb Hessian: representations, refusals, and its relation to Gauss-Newton."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.functional import cross_entropy

from nngeo_core import FIM, GGN, Hessian, NotPositiveDefiniteError, PVector, UnsupportedOperationError
from nngeo_core.plugins import registry
from nngeo_core.testing import relative_error
from nngeo_core.testing.models import mlp

CASE = mlp()
BATCH = (CASE.inputs, torch.arange(len(CASE.inputs)) % 3)


def _oracle() -> Tensor:
    named = {name: parameter.detach() for name, parameter in CASE.model.named_parameters()}

    def mean(flat: Tensor) -> Tensor:
        parts = flat.split([parameter.numel() for parameter in named.values()])
        values = {name: part.view_as(named[name]) for name, part in zip(named, parts, strict=True)}
        return cross_entropy(functional_call(CASE.model, values, (BATCH[0],)), BATCH[1])

    found: Tensor = jacrev(jacrev(mean))(torch.cat([part.flatten() for part in named.values()]))
    return found


def _loss(outputs: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(outputs, y, reduction="none")


def test_all_its_representations_are_the_hessian() -> None:
    expected = _oracle()
    implicit, dense, blocks = Hessian(CASE.model, BATCH, ["implicit", "dense", "blockdiag"], variant="classif_logits")
    given = Hessian(CASE.model, [(x[None], y[None]) for x, y in zip(*BATCH, strict=True)], "dense", loss=_loss)
    assert (dense.data - expected).norm() <= 1e-12 * expected.norm()
    assert relative_error(given.data, expected) <= 1e-12
    for layer_id, place in dense.layer_collection.slices().items():
        assert relative_error(blocks.data[layer_id], expected[place, place]) <= 1e-12
    assert torch.equal(dense.data, dense.data.T)
    assert relative_error(dense.trace(), expected.trace()) <= 1e-12
    assert relative_error(blocks.trace(), expected.trace()) <= 1e-12
    rows = torch.randn(2, len(expected), dtype=torch.float64)
    assert relative_error(implicit.mv(rows), rows @ expected) <= 1e-12
    assert {matrix.n_examples for matrix in (implicit, dense, blocks, given)} == {len(CASE.inputs)}
    assert (dense.likelihood, given.likelihood) == ("hessian of classif_logits", "hessian of a loss")


def test_the_spectrum_of_an_indefinite_matrix_from_products() -> None:
    implicit, expected = Hessian(CASE.model, BATCH, "implicit", variant="classif_logits"), _oracle()
    values = torch.linalg.eigvalsh(expected)
    assert values[0] < -1e-3 < 0 < values[-1]
    assert relative_error(implicit.norm(2), values.abs().max()) <= 1e-10
    found = implicit.eigendecomposition(3)
    assert (found.values - values[-3:]).abs().max() <= 1e-10 * values[-1]
    estimate = implicit.hutchinson_trace(400, torch.Generator().manual_seed(0))
    assert abs(estimate.value - expected.trace()) <= 4 * estimate.standard_error
    v = PVector(implicit.layer_collection, torch.randn(len(expected), dtype=torch.float64))
    flat = v.get_flat_representation()
    assert relative_error((2 * implicit).vTMv(v), 2 * (flat @ expected @ flat)) <= 1e-10
    damped = expected - 2 * values[0] * torch.eye(len(expected), dtype=torch.float64)
    x = implicit.solve(v, -2 * values[0]).get_flat_representation()
    assert (damped @ x - flat).norm() <= 1e-12 * (damped.norm() * x.norm() + flat.norm())
    with pytest.raises(NotPositiveDefiniteError, match="is not positive definite to working precision"):
        implicit.solve(v, 1e-3)


def test_for_a_model_linear_in_its_parameters_it_is_gauss_newton() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    batch = (torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0]))
    found = Hessian(model, batch, "dense", variant="classif_logits")
    for other in (FIM(model, batch, "dense"), GGN(model, batch, "dense", loss=_loss)):
        assert relative_error(found.data, other.data) <= 1e-12


@pytest.mark.parametrize("kind", ["diag", "kfac", "lowrank", "eye"])
def test_what_is_made_of_jacobians_is_refused(kind: str) -> None:
    for given in (kind, registry.representation(kind, kind="pmat")):
        with pytest.raises(
            UnsupportedOperationError, match="no Jacobians, which .* would be made of; use one of 'implicit'"
        ):
            Hessian(CASE.model, BATCH, given, variant="classif_logits")


def test_an_implicit_one_says_what_takes_jacobians() -> None:
    implicit = Hessian(CASE.model, BATCH, "implicit", variant="classif_logits")
    for refused in (implicit.trace, implicit.get_diag):
        with pytest.raises(UnsupportedOperationError, match="hutchinson_trace and hutchinson_diag estimate it"):
            refused()
    for refused in (implicit.norm, implicit.logdet, implicit.sample, lambda: implicit.norm(-2)):
        with pytest.raises(UnsupportedOperationError, match="; "):
            refused()
    with pytest.raises(UnsupportedOperationError, match=r"no Jacobians, which DenseAccumulator sums; Hessian\("):
        implicit.convert("dense").update(BATCH, 0.5)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="give a `variant`.*or a `loss`"):
        Hessian(CASE.model, BATCH, "dense")
    with pytest.raises(ValueError, match="empty list"):
        Hessian(CASE.model, BATCH, [], variant="classif_logits")
    with pytest.raises(ValueError, match="can be read only once"):
        Hessian(CASE.model, iter([BATCH]), "dense", variant="classif_logits")
