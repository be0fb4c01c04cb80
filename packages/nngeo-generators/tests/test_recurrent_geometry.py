"""The rule of recurrent layers on any geometry: sizes, layers, directions, layouts; against autograd through the module."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nngeo_core import GaussianLikelihood, KroneckerJacobian
from nngeo_core.testing import output_jacobian
from nngeo_core.testing.jacobian_contract import CONTRACTIONS, agree
from nngeo_generators import HooksGenerator

TYPES = {"tanh": nn.RNN, "relu": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Recurrent(nn.Module):
    """A recurrent layer on rows that hold the steps and the states to begin with, so that one example is one row.

    Attributes:
        layer: The layer.
        steps: T.
        widths: Of the states to begin with, zeros if there are none.
        used: Which of output, hidden state and cell state the model's outputs are made of.
    """

    def __init__(self, layer: nn.RNNBase, steps: int, widths: list[int], used: list[bool]) -> None:
        super().__init__()
        self.layer, self.steps, self.widths, self.used = layer, steps, widths, used
        self.count = layer.num_layers * (1 + layer.bidirectional)

    @property
    def row(self) -> int:
        """Length of a row."""
        return self.steps * self.layer.input_size + self.count * sum(self.widths)

    def forward(self, rows: Tensor) -> Tensor:
        sizes = [self.steps * self.layer.input_size, *(self.count * width for width in self.widths)]
        x, *begin = rows.split(sizes, 1)
        x = x.unflatten(1, (self.steps, -1))
        hx: Any = tuple(part.unflatten(1, (self.count, -1)).transpose(0, 1).contiguous() for part in begin) or None
        hx = hx[0] if hx and len(hx) == 1 else hx
        outputs, states = self.layer(x if self.layer.batch_first else x.transpose(0, 1), hx)
        outputs = outputs if self.layer.batch_first else outputs.transpose(0, 1)
        states = states if isinstance(states, tuple) else (states,)
        parts = [outputs.flatten(1), *(state.transpose(0, 1).flatten(1) for state in states)]
        return torch.cat([part for part, used in zip(parts, self.used, strict=False) if used], 1)


@dataclass
class Geometry:
    """A model in float64 and its inputs."""

    model: Recurrent
    x: Tensor


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    kind = draw(st.sampled_from(sorted(TYPES)))
    hidden, steps, n = (draw(st.integers(1, 3)) for _ in range(3))
    options = {name: draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    special: dict[str, Any] = {"nonlinearity": kind} if kind in ("tanh", "relu") else {}
    if kind == "lstm":
        special["proj_size"] = draw(st.integers(0, hidden - 1))
    layer = TYPES[kind](draw(st.integers(1, 3)), hidden, draw(st.integers(1, 3)), **options, **special)
    widths = [special.get("proj_size", 0) or hidden, *[hidden] * (kind == "lstm")] if draw(st.booleans()) else []
    used = draw(st.lists(st.booleans(), min_size=3, max_size=3).filter(lambda used: used[0] or used[1]))
    model = Recurrent(layer, steps, widths, used).double()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7, generator=generator)
    return Geometry(model, torch.randn(n, model.row, dtype=torch.float64, generator=generator))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(geometries())
def test_any_geometry_equals_autograd(case: Geometry) -> None:
    """By the rule, which the examination would replace by the dense generic way if it were wrong."""
    generator = HooksGenerator(case.model, GaussianLikelihood())
    layers = generator.layer_collection
    found = generator.jacobian(case.x)
    names = [name for name, _ in layers.named_parameters(case.model)]
    expected = output_jacobian(case.model, case.x, names)
    agree(found.to_dense({name: layer.numel() for name, layer in layers.items()}), expected, "jacobian")
    for jacobian in found.layers.values():
        assert isinstance(jacobian, KroneckerJacobian) and jacobian.positions == case.model.steps
        for check in CONTRACTIONS.values():
            check(jacobian, jacobian)
