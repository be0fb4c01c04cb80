"""PMatKFACReduce: shared positions made one first."""

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import FIM, LayerCollection, UnsupportedOperationError
from nngeo_core.testing import (
    Case,
    PMatContract,
    block_diagonal,
    factors_of_parameters,
    fisher,
    kfac_reduce_factors,
    kronecker_block,
    relative_error,
)
from nngeo_core.testing.models import conv_net, position_net
from nngeo_core.testing.pmat_contract import _case
from nngeo_reprs import PMatEKFACReduce, PMatKFAC, PMatKFACReduce

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


class TestPMatKFACReduce(PMatContract):
    representation = PMatKFACReduce
    unsupported = frozenset({"product_solve"})
    inverse_kind = "ekfac-reduce"

    @pytest.fixture(params=SHARED)
    def case(self, request: pytest.FixtureRequest) -> Case:
        """Models with shared positions, and a few without."""
        return _case(request.param)

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        blocks = []
        for names in layers.parameter_names.values():
            a, g = factors_of_parameters(kfac_reduce_factors, case.model, case.inputs, names, variant)
            blocks.append(kronecker_block(a, g, has_bias=len(names) == 2))
        return torch.block_diag(*blocks)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_it_is_exact_for_deep_linear_nets_that_average_over_positions(bias: bool) -> None:
    case = position_net(4, bias=bias, activation=nn.Identity)
    matrix = FIM(case.model, case.inputs, PMatKFACReduce, variant="regression")
    names = [name for name, _ in matrix.layer_collection.named_parameters(case.model)]
    sizes = [layer.numel() for layer in matrix.layer_collection.values()]
    expected = block_diagonal(fisher(case.model, case.inputs, names, "regression"), sizes)
    assert relative_error(matrix.get_dense_tensor(), expected) <= 1e-12
    expand = FIM(case.model, case.inputs, PMatKFAC, variant="regression")
    assert relative_error(expand.get_dense_tensor(), expected) >= 0.1
    assert (
        relative_error(FIM(case.model, case.inputs, PMatEKFACReduce, variant="regression").trace(), expected.trace())
        <= 1e-12
    )


def test_without_shared_positions_it_is_kfac() -> None:
    case = conv_net(image=(3, 2))
    reduced, expand = FIM(case.model, case.inputs, [PMatKFACReduce, PMatKFAC])
    assert relative_error(reduced.get_dense_tensor(), expand.get_dense_tensor()) <= 1e-12


def test_tables_that_look_several_rows_up_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2)).double()
    with pytest.raises(
        UnsupportedOperationError, match="layer '0': averaged over 2 look-ups.* 7 x 7 entries; use 'kfac'"
    ):
        FIM(model, torch.randint(7, (4, 2)), PMatKFACReduce)
    model[2] = nn.Linear(3, 2).double()
    reduced, expand = FIM(model, torch.randint(7, (4, 1)), [PMatKFACReduce, PMatKFAC])
    assert relative_error(reduced.get_dense_tensor(), expand.get_dense_tensor()) <= 1e-12
    layers = LayerCollection.from_model(model)
    assert PMatKFACReduce.stored_numbers(layers) == {"2": 4**2 + 2**2}
    assert PMatEKFACReduce.stored_numbers(layers) == {"2": 4**2 + 2**2 + 8}
