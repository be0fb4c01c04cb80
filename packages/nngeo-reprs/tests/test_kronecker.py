"""Algebra of one layer's Kronecker block, for every layout of its parameters."""

import pytest
import torch
from torch import Tensor

from nngeo_core import KroneckerFactors, KroneckerLayout
from nngeo_core.testing import kronecker_block, relative_error
from nngeo_reprs.kronecker import dense_block, diagonal, factored_damping, multiply, zero_factors

LAYOUTS = {
    "linear": KroneckerLayout(1, 3, 2, has_bias=True),
    "no-bias": KroneckerLayout(1, 3, 2, has_bias=False),
    "grouped": KroneckerLayout(3, 2, 4, has_bias=True),
    "inputs-first": KroneckerLayout(1, 3, 4, has_bias=True, leading_inputs=4),
    "transposed-convolution": KroneckerLayout(2, 3, 6, has_bias=True, leading_inputs=2),
    "bias-only": KroneckerLayout(2, 3, 0, has_bias=True),
}


def _factors(layout: KroneckerLayout, dtype: torch.dtype = torch.float64) -> KroneckerFactors:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(layout.groups, 9, layout.inputs + layout.has_bias, generator=generator, dtype=dtype)
    outputs = torch.randn(layout.groups, 9, layout.outputs, generator=generator, dtype=dtype)
    return KroneckerFactors(inputs.mT @ inputs, outputs.mT @ outputs, layout)


@pytest.fixture(params=LAYOUTS)
def factors(request: pytest.FixtureRequest) -> KroneckerFactors:
    return _factors(LAYOUTS[request.param])


def _dense_by_entries(factors: KroneckerFactors) -> Tensor:
    """The definition: what the layout calls weight (q, g, a) times (q, g', a') has G[g, g'] A[a, a'], nothing across groups."""
    layout, d = factors.layout, factors.layout.numel
    units = layout.to_matrix(torch.eye(d, dtype=factors.inputs.dtype))  # unit vector i as a matrix: one entry is 1
    where = [tuple(int(k) for k in unit.nonzero()[0]) for unit in units]
    dense = torch.zeros(d, d, dtype=factors.inputs.dtype)
    for i, (q, g, a) in enumerate(where):
        for j, (r, h, b) in enumerate(where):
            if q == r:
                dense[i, j] = factors.outputs[q, g, h] * factors.inputs[q, a, b]
    return dense


def test_block_and_diagonal(factors: KroneckerFactors) -> None:
    expected = _dense_by_entries(factors)
    assert relative_error(dense_block(factors, split_weight_bias=True), expected) <= 1e-14
    assert relative_error(factors.layout.from_matrix(diagonal(factors)), expected.diagonal()) <= 1e-14


@pytest.mark.parametrize("name", ["linear", "no-bias", "grouped", "bias-only"])
def test_block_of_a_weight_stored_outputs_first_is_the_oracle_s(name: str) -> None:
    factors = _factors(LAYOUTS[name])
    expected = kronecker_block(factors.inputs, factors.outputs, factors.layout.has_bias)
    assert relative_error(dense_block(factors, split_weight_bias=True), expected) <= 1e-14


def test_block_with_each_bias_beside_its_weights(factors: KroneckerFactors) -> None:
    groups = zip(factors.outputs, factors.inputs, strict=True)
    expected = torch.block_diag(*[torch.kron(outputs, inputs) for outputs, inputs in groups])
    assert relative_error(dense_block(factors, split_weight_bias=False), expected) <= 1e-14
    assert relative_error(diagonal(factors).flatten(), expected.diagonal()) <= 1e-14


def test_product_of_several_vectors(factors: KroneckerFactors) -> None:
    v = torch.randn(2, 3, factors.layout.numel, dtype=torch.float64)
    found = factors.layout.from_matrix(multiply(factors, factors.layout.to_matrix(v)))
    assert relative_error(found, v @ _dense_by_entries(factors).T) <= 1e-13


def test_factored_damping_balances_the_mean_eigenvalues() -> None:
    layout = KroneckerLayout(2, 1, 2, has_bias=False)
    inputs = torch.tensor([[[1.0, 0.5], [0.5, 3.0]], [[4.0, 0.0], [0.0, 8.0]]])  # traces 4 and 12, mean eigenvalue 4
    outputs = torch.tensor([[[0.5]], [[1.5]]])  # mean eigenvalue 1, so that pi = 2
    assert factored_damping(KroneckerFactors(inputs, outputs, layout), 0.09) == pytest.approx((0.6, 0.15))


@pytest.mark.parametrize("dead", ["inputs", "outputs"])
def test_factored_damping_of_a_dead_layer_has_no_scale_to_balance(dead: str) -> None:
    factors = _factors(LAYOUTS["linear"])
    factors = KroneckerFactors(
        factors.inputs * (dead != "inputs"), factors.outputs * (dead != "outputs"), factors.layout
    )
    assert factored_damping(factors, 0.04) == pytest.approx((0.2, 0.2))


def test_zero_factors_are_a_zero_block() -> None:
    factors = zero_factors(5, torch.float32, torch.device("cpu"))
    assert torch.equal(dense_block(factors, split_weight_bias=True), torch.zeros(5, 5))
    assert factors.layout.numel == 5
