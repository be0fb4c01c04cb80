"""J v by forward mode, by two reverse passes, from the layers: each is left for the next when it fails or is wrong."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import NNGeoError, PVector, UnsupportedLayerError, random_pvector
from nngeo_core.testing import fisher, relative_error
from nngeo_generators import HooksGenerator
from nngeo_generators.linearize import Linearizer, all_ways, pull_back_one
from nngeo_generators.network import Network

Build = Callable[..., nn.Module]
Hooks = Callable[..., HooksGenerator]

X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
S = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Doubled(torch.autograd.Function):
    """2 x, whose derivatives are as the subclass says."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class WithoutForwardMode(Doubled):
    pass


class WrongForwardMode(Doubled):
    jvp = staticmethod(lambda ctx, tangent: 3 * tangent)


class ZeroForwardMode(Doubled):
    jvp = staticmethod(lambda ctx, tangent: 0 * tangent)


class WithoutSecondDerivative(Doubled):
    backward = staticmethod(torch.autograd.function.once_differentiable(lambda ctx, gradient: 2 * gradient))


class CutSecondDerivative(Doubled):
    backward = staticmethod(lambda ctx, gradient: 2 * gradient.detach())


def no_grad_inside(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = net.a(x)
    return net.b(h.tanh())


FORWARD, REVERSE, LAYERS = "forward mode", "two reverse passes", "by layers"


@pytest.mark.parametrize(("forward", "left", "way"), [
    (lambda net, x: net.b(net.a(x).tanh()), 4, FORWARD),
    (lambda net, x: net.b(WithoutForwardMode.apply(net.a(x))), 2, REVERSE),
    (lambda net, x: net.b(WrongForwardMode.apply(net.a(x))), 2, REVERSE),
    (lambda net, x: ZeroForwardMode.apply(net.b(net.a(x))), 2, REVERSE),
    (no_grad_inside, 2, REVERSE),
    (lambda net, x: net.b(WithoutSecondDerivative.apply(net.a(x))), 1, LAYERS),
    (lambda net, x: CutSecondDerivative.apply(net.b(net.a(x))), 1, LAYERS),
    (lambda net, x: net.b(CutSecondDerivative.apply(net.a(x))), 1, LAYERS),
], ids=["plain", "no-jvp", "wrong-jvp", "zero-jvp", "no-grad", "once", "cut-all", "cut-part"])  # fmt: skip
def test_the_first_way_that_is_exact_is_taken_and_kept(
    forward: Callable[..., Tensor], left: int, way: str, build: Build, hooks: Hooks, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    generator, alone = hooks(model), hooks(model)
    v = random_pvector(generator.layer_collection, dtype=torch.float64)
    names = [name for name, _ in generator.layer_collection.named_parameters(model)]
    expected = fisher(model, X, names, "regression") @ v.get_flat_representation()
    with caplog.at_level(logging.INFO, "nngeo_generators"):
        for _ in range(2):
            found = generator.product(v, X).get_flat_representation()
            assert relative_error(found, expected) < 1e-12
            form = alone.quadratic_form(v, X)
            assert relative_error(form, v.get_flat_representation() @ expected) < 1e-12
    assert alone._ways[0].__name__ == generator._ways[0].__name__
    assert (len(generator._ways), generator._ways[0].__name__.strip("_").replace("_", " ")) == (left, way)
    assert len(caplog.messages) == 2 * (4 - left)
    assert all(message.startswith("products go on by ") for message in caplog.messages)


def test_recurrent_cells_have_forward_mode_without_mkldnn(build: Build, hooks: Hooks) -> None:
    model = build(
        lambda net, x: net.b(net.a(x)[0][:, -1]), a=nn.LSTM(3, 4, batch_first=True), b=nn.Linear(4, 2)
    ).float()
    generator, enabled = hooks(model), torch._C._get_mkldnn_enabled()
    v = random_pvector(generator.layer_collection)
    generator.product(v, S.float())
    assert len(generator._ways) > 2 and torch._C._get_mkldnn_enabled() == enabled


def test_a_quadratic_form_keeps_a_graph_for_its_first_check_alone(build: Build, hooks: Hooks) -> None:
    generator = hooks(build(lambda net, x: net.b(net.a(x).tanh()), a=nn.Linear(3, 4), b=nn.Linear(4, 2)))
    v, kept = random_pvector(generator.layer_collection, dtype=torch.float64), [0]

    def keep(tensor: Tensor) -> Tensor:
        kept[-1] += 1
        return tensor

    def parameters_change() -> None:
        with torch.no_grad():
            generator.model.a.weight.mul_(2)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for between in (lambda: None, parameters_change, lambda: None):
            generator.quadratic_form(v, X)
            kept.append(0)
            between()
    first, again, changed, _ = kept
    assert first > 0 and again == 0 and changed > 0


def test_no_tangent_no_change(build: Build, hooks: Hooks) -> None:
    """J v = 0 for v = 0 is no sign of a lost derivative."""
    generator = hooks(build(lambda net, x: net.a(x), a=nn.Linear(3, 2)))
    nothing = PVector(generator.layer_collection, vector_repr=torch.zeros(8, dtype=torch.float64))
    assert not generator.product(nothing, X).get_flat_representation().any() and len(generator._ways) == 4


@pytest.mark.parametrize("fails_at", [1, 2, 6])
def test_what_the_model_raises_comes_out_as_it_is(fails_at: int, build: Build, hooks: Hooks) -> None:
    """From that call on; no way is given up for it."""
    calls = 0

    def forward(net: Any, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls >= fails_at:
            raise KeyError("mine")
        return net.a(x)

    generator = hooks(build(forward, a=nn.Linear(3, 2)))
    v = random_pvector(generator.layer_collection, dtype=torch.float64)
    with pytest.raises(KeyError, match="mine"):
        generator.product(v, [(X,), (X,), (X,)])
    assert len(generator._ways) == 4


def test_when_no_way_is_exact_the_reasons_are_told() -> None:
    model = nn.Linear(3, 2).double()
    network = Network(model, lambda x: WithoutSecondDerivative.apply(model(x)))
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in model.named_parameters()}
    linearizer = Linearizer(model, parameters, torch.ones(8, dtype=torch.float64), all_ways())
    with pytest.raises(
        NNGeoError, match=r"^no way to J v is exact for this model: by forward mode, .*; by two reverse"
    ):
        linearizer.linearize(network, X, lambda outputs, change: change)


def test_what_autograd_refuses_is_refused_with_its_reason() -> None:
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    h = (X * w).tanh()
    outputs = h * 1
    h.mul_(2)
    with pytest.raises(
        UnsupportedLayerError, match="autograd cannot differentiate this model: one of the variables needed"
    ):
        pull_back_one(outputs, {"w": w}, torch.ones_like(X))


def test_a_parameter_kept_in_a_list_has_its_whole_derivative(build: Build, hooks: Hooks) -> None:
    """Dual numbers in the parameter's place miss that use; the parameter itself does not."""
    model = build(lambda net, x: nn.functional.linear(net.a(x).tanh(), net.kept[0]), a=nn.Linear(3, 3))
    model.kept = [model.a.weight]
    generator = hooks(model)
    v = random_pvector(generator.layer_collection, dtype=torch.float64)
    rows = [torch.autograd.grad(output, list(model.parameters()), retain_graph=True) for output in model(X).flatten()]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    expected = jacobian.T @ (jacobian @ v.get_flat_representation()) / 4
    assert relative_error(generator.product(v, X).get_flat_representation(), expected) < 1e-12


class StraightThrough(nn.Module):
    """Rounds one output without telling autograd: forward mode carries the rounding's tangent along, reverse mode does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = 3 * self.a(x)
        with torch.no_grad():
            rounding = h.round() - h
        return torch.cat([h + rounding, self.b(x).tanh()], 1)


def test_a_derivative_lost_where_the_free_check_cannot_see_it() -> None:
    from nngeo_core import LayerCollection, PVector
    from nngeo_core.testing import fisher, relative_error
    from nngeo_generators import HooksGenerator

    torch.manual_seed(0)
    model, x = StraightThrough().double(), torch.randn(6, 4, dtype=torch.float64)
    layers = LayerCollection.from_model(model)
    names = [name for name, _ in layers.named_parameters(model)]
    v = torch.randn(layers.numel(), dtype=torch.float64)
    found = HooksGenerator(model, "regression").product(PVector(layers, vector_repr=v), x)
    assert relative_error(found.get_flat_representation(), fisher(model, x, names, "regression") @ v) <= 1e-10
