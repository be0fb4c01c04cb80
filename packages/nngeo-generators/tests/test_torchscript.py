"""TorchScript: traced modules and compiled ones without parameters are exact; others are refused by name."""

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import UnsupportedOperationError
from nngeo_core.testing import output_jacobian, relative_error
from nngeo_generators import HooksGenerator

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")

X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    parts = (nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    return nn.Sequential(*parts).double().eval()


def with_part(place: int, part: nn.Module) -> nn.Sequential:
    model = plain()
    model[place] = part
    return model


MODELS = {
    "compiled activation": lambda: with_part(2, torch.jit.script(nn.Tanh())),
    "traced layer": lambda: with_part(0, torch.jit.trace(plain()[0], X)),
    "traced model": lambda: torch.jit.trace(plain(), X),
}


def assert_exact(model: nn.Module, like: nn.Module) -> None:
    """J and F v of a model are those that plain autograd finds for one that computes the same."""
    generator = HooksGenerator(model, "regression")
    layers = generator.layer_collection
    names = [name for name, _ in layers.named_parameters(model)]
    assert sorted(names) == sorted(name for name, _ in like.named_parameters())
    expected = output_jacobian(like, X, names)
    found = generator.jacobian(X).to_dense({name: layer.numel() for name, layer in layers.items()})
    assert relative_error(found, expected) < 1e-12
    rows, v = expected.flatten(0, 1), torch.linspace(-1, 1, layers.numel(), dtype=torch.float64)
    assert relative_error(generator.flat_product(v, X), rows.T @ (rows @ v) / len(X)) < 1e-12


@pytest.mark.parametrize("kind", MODELS)
def test_what_was_traced_is_exact_and_stays(kind: str) -> None:
    model = MODELS[kind]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert_exact(model, plain())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("place", "path"), [(None, ""), (0, "0")])
def test_compiled_layers_are_refused(place: int | None, path: str) -> None:
    model = torch.jit.script(plain()) if place is None else with_part(place, torch.jit.script(plain()[place]))
    with pytest.raises(UnsupportedOperationError, match=rf"module '{path}' was compiled by torch.jit.script"):
        HooksGenerator(model, "regression")


class Counting(nn.Module):
    """Replaces its buffer in each call."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x.tanh()


def test_a_compiled_modules_buffer_is_as_before() -> None:
    counting = torch.jit.script(Counting())
    model = with_part(2, counting)
    before = counting.calls
    HooksGenerator(model, "regression").jacobian(X)
    assert counting.calls is before and counting.calls == 0


def test_frozen_parts_are_constants() -> None:
    layer = nn.Linear(4, 4).double().eval().requires_grad_(False)
    same = with_part(2, nn.Sequential())
    same[2].forward = layer.forward  # which has none of its parameters
    assert_exact(with_part(2, torch.jit.freeze(torch.jit.script(layer))), same)
