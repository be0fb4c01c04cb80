"""Kronecker bases, and blocks that are diagonal in them, for every layout of the parameters."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nngeo_core import KroneckerFactors, KroneckerLayout
from nngeo_core.testing import relative_error
from nngeo_reprs.kronecker import dense_block
from nngeo_reprs.kronecker_basis import EigenBlock, same_basis, spectrum

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


def _dense(factors: KroneckerFactors) -> Tensor:
    return dense_block(factors, split_weight_bias=True)


def test_eigenbasis_inverts_the_damped_block(factors: KroneckerFactors) -> None:
    v, block = torch.randn(factors.layout.numel, dtype=torch.float64), spectrum(factors).block()
    eye = torch.eye(len(v), dtype=torch.float64)
    found = EigenBlock(block.basis, 1 / (block.values + 0.5)).multiply(factors.layout.to_matrix(v))
    expected = torch.linalg.solve(_dense(factors) + 0.5 * eye, v)
    assert relative_error(factors.layout.from_matrix(found), expected) <= 1e-11


def test_shifted_eigenvalues_are_those_of_shifted_factors(factors: KroneckerFactors) -> None:
    found = spectrum(factors).products(0.25, 2.0).flatten().sort().values
    eyes = (torch.eye(factor.shape[-1], dtype=torch.float64) for factor in (factors.inputs, factors.outputs))
    inputs, outputs = (
        factor + r * eye for factor, r, eye in zip((factors.inputs, factors.outputs), (0.25, 2.0), eyes, strict=True)
    )
    shifted = _dense(KroneckerFactors(inputs, outputs, factors.layout))
    assert relative_error(found, torch.linalg.eigvalsh(shifted)) <= 1e-12


def test_diagonal_and_entries_of_any_eigenvalues(factors: KroneckerFactors) -> None:
    basis = spectrum(factors).basis
    values = torch.rand(basis.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    block, u = EigenBlock(basis, values), basis.eigenvectors(split_weight_bias=True)
    expected = u @ values.flatten().diag() @ u.T
    assert relative_error(block.dense(split_weight_bias=True), expected) <= 1e-13
    assert relative_error(basis.layout.from_matrix(block.diagonal()), expected.diagonal()) <= 1e-13
    whole = spectrum(factors).block()
    assert relative_error(whole.dense(split_weight_bias=True), _dense(factors)) <= 1e-12


def test_bases_are_the_same_number_by_number(factors: KroneckerFactors) -> None:
    basis = spectrum(factors).basis
    assert same_basis(basis, basis.mapped(torch.clone))
    assert not same_basis(basis, replace(basis, outputs=-basis.outputs))
    assert not same_basis(basis, replace(basis, inputs=None))
