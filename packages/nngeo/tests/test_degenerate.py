"""Degenerate data, in every registered representation: each operation is finite and right, or refused with a way out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nngeo import FIM, LayerCollection, PMat, UnsupportedOperationError
from nngeo_core.plugins import registry

from .cells import check_cells

KINDS = registry.names("representations")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@dataclass(frozen=True)
class Data:
    """A model with inputs, and by what its outputs are multiplied."""

    model: nn.Module
    inputs: Tensor
    variant: str = "regression"
    scale: float = 1.0

    def matrix(self, kind: str, dtype: torch.dtype, inputs: Tensor | None = None, **options: Any) -> PMat:
        """Its matrix in a representation."""
        x = self.inputs if inputs is None else inputs
        model = self.model.to(dtype)
        found: PMat = FIM(
            model, x.to(dtype), kind, variant=self.variant, function=lambda x: self.scale * model(x), **options
        )
        return found


def _network(*widths: int, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    modules: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        modules += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*modules[:-1])


def dead_layer() -> Data:
    """No unit of the first layer ever fires: its derivative is zero, and so are the inputs of the second."""
    model = _network(3, 4, 2, activation=nn.ReLU)
    nn.init.constant_(model[0].bias, -100.0)  # type: ignore[union-attr, arg-type]
    return Data(model, torch.randn(5, 3))


def one_parameter() -> Data:
    """A line through the origin."""
    return Data(nn.Linear(1, 1, bias=False), torch.randn(5, 1))


def nothing() -> Data:
    """Outputs that depend on no parameter: the matrix is zero."""
    return Data(_network(3, 2, 2), torch.randn(5, 3), scale=0.0)


def dependent() -> Data:
    """Repeated features, units with equal weights and outputs in proportion: all Kronecker factors have a null space."""
    model = _network(4, 3, 3)
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]  # type: ignore[index, union-attr]
        model[2].weight[1] = 2 * model[2].weight[0]  # type: ignore[index, union-attr]
    return Data(model, torch.randn(6, 2).repeat(1, 2))


def scaled(scale: float) -> Data:
    """Outputs in odd units."""
    return Data(_network(3, 3, 2), torch.randn(6, 3), scale=scale)


DATA: dict[str, Callable[[], Data]] = {
    "dead-layer": dead_layer,
    "one-example": lambda: Data(_network(3, 3, 2), torch.randn(1, 3), "classif_logits"),
    "one-parameter": one_parameter,
    "zero-matrix": nothing,
    "constant-inputs": lambda: Data(_network(3, 3, 2), torch.full((6, 3), 2.0), "classif_logits"),
    "dependent-rows-and-columns": dependent,
    "confident": lambda: Data(_network(3, 3, 3), 10 * torch.randn(6, 3), "classif_logits", 100.0),
    "scale-1e-12": partial(scaled, 1e-12),
    "scale-1e-6": partial(scaled, 1e-6),
    "scale-1e6": partial(scaled, 1e6),
    "scale-1e12": partial(scaled, 1e12),
}


def _drawn(build: Callable[[], Data]) -> Data:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return build()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_data(kind: str, name: str, dtype: torch.dtype) -> None:
    data = _drawn(DATA[name])
    matrix, other = data.matrix(kind, dtype), data.matrix(kind, dtype, data.inputs.flip(0) * 0.5)
    check_cells(matrix, other, TOLERANCE[dtype])


def _transformer() -> Data:
    """GPT-2 in its smallest form, the head tied to the embedding."""
    sizes = {"vocab_size": 6, "n_positions": 4, "n_embd": 4, "n_layer": 1, "n_head": 2, "n_inner": 6}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, attn_implementation="eager")).double().eval()
    return Data(model, torch.randint(0, 6, (3, 4)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_transformer(kind: str) -> None:
    """All layers where the representation is defined on them; else it says so, and takes the linear ones."""
    data = _drawn(_transformer)

    def matrix(inputs: Tensor, layers: LayerCollection | None = None) -> PMat:
        outputs = lambda x: data.model(x).logits[:, -1]  # noqa: E731
        found: PMat = FIM(data.model, inputs, kind, function=outputs, layer_collection=layers)
        return found

    layers = None
    try:
        matrix(data.inputs)
    except UnsupportedOperationError as error:
        assert "layer 'transformer." in str(error)
        layers = LayerCollection.from_model(data.model, only=[Conv1D])
    check_cells(matrix(data.inputs, layers), matrix(data.inputs.flip(1), layers), TOLERANCE[torch.float64])
