"""PMatEKFACReduce: shared positions made one, and eigenvalues corrected."""

from collections.abc import Iterable, Sequence

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import FIM, LayerCollection, PMat
from nngeo_core.testing import (
    Case,
    PMatContract,
    ekfac_block,
    factors_of_parameters,
    kfac_reduce_factors,
    reduced_positions,
    relative_error,
)
from nngeo_core.testing.models import MODELS, position_net
from nngeo_core.testing.pmat_contract import _case
from nngeo_reprs import PMatEKFACReduce, PMatKFACReduce

SHARED = (
    "mlp",
    "mlp-one-example",
    "mlp-frozen-bias",
    "conv-stride-padding",
    "conv-groups",
    "positions-three-axes",
    "called-twice",
    "tied-weight-own-bias",
)


class TestPMatEKFACReduce(PMatContract):
    representation = PMatEKFACReduce
    unsupported = frozenset({"mm"})

    def tensors_to_change(self, matrix: PMat) -> Iterable[Tensor]:
        return [block.values for block in matrix.data.values()]

    @pytest.fixture(params=SHARED)
    def case(self, request: pytest.FixtureRequest) -> Case:
        """Models with shared positions, and a few without."""
        return _case(request.param)

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        blocks = []
        for names in layers.parameter_names.values():
            a, g = factors_of_parameters(kfac_reduce_factors, case.model, case.inputs, names, variant)
            block = _reduced_block(case, names, variant, a.shape[-1])
            blocks.append(ekfac_block(block, a, g, has_bias=len(names) == 2))
        return torch.block_diag(*blocks)


def _reduced_block(case: Case, names: Sequence[str], variant: str, width: int) -> Tensor:
    """(1/n) sum of the outer products of t (x) mbar, of the first inputs, or of the 1 of a bias alone."""
    parameters = dict(case.model.named_parameters())
    paths = [
        path
        for path, module in case.model.named_modules()
        if any(own is parameters[names[0]] for own in module.parameters(recurse=False))
    ]
    mean, total = reduced_positions(case.model, case.inputs, paths, variant)
    mean = mean[..., -1:] if all(name.endswith("bias") for name in names) else mean[..., :width]
    jacobian = torch.einsum("nkqo,nqi->nkqoi", total, mean).flatten(0, 1)
    if len(names) == 2:
        jacobian = torch.cat([jacobian[..., :-1].flatten(1), jacobian[..., -1].flatten(1)], 1)
    jacobian = jacobian.flatten(1)
    return jacobian.T @ jacobian / len(case.inputs)


def test_it_is_made_from_kfac_reduce_without_loss() -> None:
    case = position_net(4)
    matrix = FIM(case.model, case.inputs, PMatKFACReduce)
    found = matrix.convert("ekfac-reduce")
    assert isinstance(found, PMatEKFACReduce)
    assert relative_error(found.get_dense_tensor(), matrix.get_dense_tensor()) <= 1e-12


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_it_is_exact_for_deep_linear_nets_that_average_over_positions(bias: bool) -> None:
    case = position_net(4, bias=bias, activation=nn.Identity)
    matrix, exact = FIM(case.model, case.inputs, [PMatEKFACReduce, "blockdiag"], variant="regression")
    assert relative_error(matrix.get_dense_tensor(), exact.get_dense_tensor()) <= 1e-10


def test_eigenvalues_are_refreshed_for_reduced_positions() -> None:
    case = MODELS["positions-sequence"]()
    matrix = FIM(case.model, case.inputs, PMatEKFACReduce)
    expected = matrix.get_dense_tensor()
    matrix.update_diag(case.inputs)
    assert relative_error(matrix.get_dense_tensor(), expected) <= 1e-12
