"""Kernels of real architectures: every representation agrees with plain autograd on each example alone."""

from functools import cache

import pytest
import torch
from torch import Tensor

from nngeo import GramMatrix, LayerCollection
from nngeo_core.testing import output_jacobian, relative_error

from .architectures import ARCHITECTURES, Architecture

SMALL = [name for name in ARCHITECTURES if name != "minilm"]


@cache
def known(name: str) -> tuple[Architecture, Tensor]:
    """An architecture, and its kernel (c, n, c, n) from the oracle."""
    built = ARCHITECTURES[name]()
    layers = LayerCollection.from_model(built.model)
    names = [name for name, _ in layers.named_parameters(built.model)]
    rows = output_jacobian(built.model, built.inputs, names, built.outputs)
    return built, torch.einsum("cnd,kmd->cnkm", rows, rows)


@pytest.mark.parametrize("name", SMALL)
def test_the_whole_kernel(name: str) -> None:
    built, expected = known(name)
    found = GramMatrix(built.model, built.inputs, function=built.outputs)
    assert relative_error(found.get_dense_tensor(), expected) <= built.tolerance


@pytest.mark.parametrize("name", SMALL)
def test_the_average_over_outputs(name: str) -> None:
    built, expected = known(name)
    found = GramMatrix(built.model, built.inputs, "trace", built.outputs)
    wanted = torch.einsum("cncm->nm", expected) / len(expected)
    assert relative_error(found.get_dense_tensor()[0, :, 0], wanted) <= built.tolerance


@pytest.mark.parametrize("name", ["bert-pooled", "resnet", "lstm", "low-rank-adapters"])
def test_over_the_budget(name: str) -> None:
    built, expected = known(name)
    found = GramMatrix(built.model, built.inputs, function=built.outputs, memory_budget=20_000)
    assert relative_error(found.get_dense_tensor(), expected) <= built.tolerance


@pytest.mark.parametrize("method", ["positions", "gradients", "products"])
@pytest.mark.parametrize("name", ["gpt2-eager", "llama-sdpa", "resnet", "unet", "lstm"])
def test_every_method(name: str, method: str) -> None:
    built, expected = known(name)
    found = GramMatrix(built.model, built.inputs, function=built.outputs, method=method)
    assert relative_error(found.get_dense_tensor(), expected) <= built.tolerance
