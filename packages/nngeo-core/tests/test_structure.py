"""Structure: the factors' shapes and sizes, against factors that were really summed."""

import pytest
import torch

from nngeo_core import IndexJacobian, KroneckerJacobian, KroneckerLayout, LayerJacobian, Structure

LAYOUTS = {
    "linear": KroneckerLayout(1, 3, 4, True),
    "no-bias": KroneckerLayout(1, 3, 4, False),
    "groups": KroneckerLayout(2, 3, 4, True),
    "bias-only": KroneckerLayout(2, 3, 0, True),
}
CASES: dict[str, tuple[Structure, LayerJacobian]] = {
    name: (
        Structure(layout),
        KroneckerJacobian(
            torch.ones(5, 2, layout.groups, layout.inputs), torch.ones(1, 5, 2, layout.groups, layout.outputs), layout
        ),
    )
    for name, layout in LAYOUTS.items()
} | {
    "table": (
        Structure(KroneckerLayout(1, 3, 6, False, leading_inputs=6), diagonal_inputs=True),
        IndexJacobian(torch.zeros(5, 2, dtype=torch.int64), torch.ones(1, 5, 2, 3), 6),
    )
}


@pytest.mark.parametrize("name", CASES)
def test_the_factors_are_as_it_says(name: str) -> None:
    structure, jacobian = CASES[name]
    factors = jacobian.kronecker_factors()
    assert structure.layout == factors.layout
    assert structure.factor_shapes == (factors.inputs.shape, factors.outputs.shape)
    assert structure.factor_numel == factors.inputs.numel() + factors.outputs.numel()


def test_without_kronecker_products_there_are_none() -> None:
    assert (Structure().factor_shapes, Structure().factor_numel) == (None, None)
