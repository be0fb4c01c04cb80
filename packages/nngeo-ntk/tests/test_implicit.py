"""FMatImplicit: the contract, and what only a kernel without entries has."""

import pytest
import torch

from nngeo_core import GramMatrix, UnsupportedOperationError
from nngeo_core.testing import MODELS, FMatContract, relative_error
from nngeo_ntk import FMatImplicit


class TestFMatImplicit(FMatContract):
    representation = FMatImplicit
    unsupported = frozenset({"inverse", "logdet", "spectrum"})


def test_a_buffer_is_refused() -> None:
    case = MODELS["mlp"]()
    with pytest.raises(ValueError, match="stores nothing that a buffer could take"):
        GramMatrix(case.model, case.inputs, "implicit", out=torch.empty(3, 7, 3, 7))


def test_it_follows_the_model() -> None:
    case = MODELS["mlp"]()
    kernel = GramMatrix(case.model, case.inputs, "implicit")
    before = kernel.trace()
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.mul_(1.5)
    found = kernel.trace()
    assert relative_error(found, GramMatrix(case.model, case.inputs, "trace").trace() * 3) <= 1e-12
    assert (found - before).abs() > 0.1 * before


def test_all_eigenvalues_are_refused_with_what_has_them() -> None:
    case = MODELS["mlp"]()
    with pytest.raises(UnsupportedOperationError, match="compute the kernel as 'dense'"):
        GramMatrix(case.model, case.inputs, "implicit").eigendecomposition()


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e12])
@pytest.mark.parametrize("budget", [None, 1])
def test_norms_of_any_size(scale: float, budget: int | None) -> None:
    model, x = torch.nn.Linear(3, 2, bias=False), scale * torch.randn(4, 3)
    for others in (None, x[:3] + scale):
        implicit = GramMatrix(model, x, "implicit", loader2=others, memory_budget=budget)
        dense = GramMatrix(model.double(), x.double(), loader2=None if others is None else others.double())
        model.float()
        assert float(implicit.norm()) == pytest.approx(float(dense.norm()), rel=1e-5)
