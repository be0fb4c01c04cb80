"""Fixtures of nngeo-generators' tests: models made of a function, and the dense Fisher matrix of a stream."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import Accumulator, ClassifLogits, GaussianLikelihood, JacobianBatch, populate
from nngeo_generators import HooksGenerator


class FunctionalNet(nn.Module):
    """A model whose forward pass is a function of itself and its inputs."""

    def __init__(self, function: Callable[..., Any], modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Any, **named_inputs: Any) -> Any:
        return self.function(self, *inputs, **named_inputs)


class DenseSum(Accumulator):
    """F itself."""

    def accumulate(self, batch: JacobianBatch) -> None:
        rows = batch.to_dense({name: layer.numel() for name, layer in self.layer_collection.items()}).flatten(0, 1)
        self.add("fisher", rows.T @ rows)

    def finalize(self) -> Tensor:
        return self.sums["fisher"] / self.n_examples


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """`build(lambda net, x: net.a(x), a=nn.Linear(3, 2))` is that model, in float64."""
    return lambda function, **modules: FunctionalNet(function, modules).double()


@pytest.fixture
def hooks() -> Callable[..., HooksGenerator]:
    """The generator of a model, for regression unless told otherwise."""
    return lambda model, likelihood=None, **options: HooksGenerator(
        model, likelihood or GaussianLikelihood(), **options
    )


@pytest.fixture
def dense_fisher() -> Callable[..., Tensor]:
    """F of a model, summed from the stream as a representation does."""
    likelihoods = {"regression": GaussianLikelihood, "classif_logits": ClassifLogits}

    def compute(model: nn.Module, examples: Any, variant: str = "regression", **options: Any) -> Tensor:
        generator = HooksGenerator(model, likelihoods[variant](), **options)
        total = DenseSum(generator.layer_collection)
        populate(generator, examples, [total])
        return total.finalize()

    return compute
