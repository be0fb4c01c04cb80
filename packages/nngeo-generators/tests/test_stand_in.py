"""Stand-ins: the bare parameters of containers, once for each example of a forward pass."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import LayerCollection
from nngeo_core.testing import output_jacobian, relative_error
from nngeo_generators import HooksGenerator
from nngeo_generators.plan import Use, make_plan
from nngeo_generators.stand_in import StandInRule, copies, replaced

N, T, D = 4, 3, 5
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A container with one bare parameter, and a layer so that it is one."""

    def __init__(self, forward: Forward, *shape: int) -> None:
        super().__init__()
        self.own_forward = forward
        self.bare = nn.Parameter(numbers(*shape, seed=1))
        self.layer = nn.Linear(D, D)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.own_forward(self, x).tanh().flatten(1)[:, ::4]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_class_token(net: Net, x: Tensor) -> Tensor:
    return net.layer(torch.cat([net.bare.expand(len(x), -1, -1), x], 1))


def with_class_token_from_shape(net: Net, x: Tensor) -> Tensor:
    n, _, width = x.shape
    return net.layer(torch.cat([net.bare.expand(n, 1, width), x], 1))


def with_repeated_class_token(net: Net, x: Tensor) -> Tensor:
    return net.layer(torch.cat([net.bare.repeat(len(x), 1, 1), x], 1))


def with_product(net: Net, x: Tensor) -> Tensor:
    return net.layer(x) * net.bare


def with_sum(net: Net, x: Tensor) -> Tensor:
    return net.layer(x) + net.bare


def with_product_twice(net: Net, x: Tensor) -> Tensor:
    return net.layer(x * net.bare) * net.bare


def on_images(net: Net, x: Tensor) -> Tensor:
    return net.layer(x.unsqueeze(3).expand(-1, -1, -1, D)) * net.bare


def under_a_matrix_product(net: Net, x: Tensor) -> Tensor:
    return net.layer(x) @ net.bare


def unused(net: Net, x: Tensor) -> Tensor:
    return net.layer(x)


TAKEN: dict[str, tuple[Forward, tuple[int, ...]]] = {
    "class-token": (with_class_token, (1, 1, D)),
    "class-token-from-shape": (with_class_token_from_shape, (1, 1, D)),
    "position-embedding": (with_sum, (1, T, D)),
    "position-embedding-without-axis": (with_sum, (T, D)),
    "layer-scale": (with_product, (D,)),
    "layer-scale-on-images": (on_images, (D,)),
    "scale-of-channels": (on_images, (T, 1, 1)),
    "scalar": (with_product, ()),
    "matrix": (under_a_matrix_product, (D, 2)),
    "twice": (with_product_twice, (D,)),
    "unused": (unused, (2,)),
}
LEFT: dict[str, tuple[Forward, tuple[int, ...]]] = {
    "repeated": (with_repeated_class_token, (1, 1, D)),
    "size-one": (with_product, (1,)),
}


def check(model: nn.Module, x: Tensor, **options: Any) -> HooksGenerator:
    """The Jacobian with respect to all parameters, against autograd."""
    generator = HooksGenerator(model, "regression", **options)
    layers = generator.layer_collection
    found = generator.jacobian(x).to_dense({layer_id: layer.numel() for layer_id, layer in layers.items()})
    expected = output_jacobian(model, x, [name for name, _ in layers.named_parameters(model)])
    assert relative_error(found, expected) <= 1e-10
    return generator


def rule_of_the_bare_parameter(generator: HooksGenerator) -> str:
    return next(use.rule.name for use in generator._known.plan if use.names[0].endswith("bare"))


@pytest.mark.parametrize(("forward", "shape"), TAKEN.values(), ids=TAKEN)
def test_copies_take_the_place_of_a_bare_parameter(forward: Forward, shape: tuple[int, ...]) -> None:
    model, x = Net(forward, *shape), numbers(N, T, D)
    assert rule_of_the_bare_parameter(check(model, x)) == "stand-in"
    check(model, x[:1])


@pytest.mark.parametrize(("forward", "shape"), LEFT.values(), ids=LEFT)
def test_what_refuses_copies_goes_the_generic_way(forward: Forward, shape: tuple[int, ...]) -> None:
    model, x = Net(forward, *shape), numbers(N, T, D)
    assert rule_of_the_bare_parameter(check(model, x)) == "generic"


@pytest.mark.parametrize(("forward", "shape"), (TAKEN | LEFT).values(), ids=TAKEN | LEFT)
@pytest.mark.parametrize("n", [T, D])
def test_as_many_examples_as_positions_or_features(forward: Forward, shape: tuple[int, ...], n: int) -> None:
    """Copies along the positions leave the outputs as they are; the comparison with a plain gradient tells them apart."""
    check(Net(forward, *shape), numbers(n, T, D))


def test_several_bare_parameters_of_one_container() -> None:
    model = Net(lambda net, x: net.layer(x * net.scale + net.bare), 1, T, D)
    model.scale = nn.Parameter(numbers(D, seed=2))
    check(model, numbers(N, T, D))


def test_bare_parameters_of_nested_containers() -> None:
    inner = Net(with_product, D)
    model = Net(lambda net, x: net.inner.own_forward(net.inner, with_sum(net, x)), 1, T, D)
    model.inner = inner
    check(model, numbers(N, T, D))


def test_a_frozen_bare_parameter() -> None:
    model = Net(with_class_token, 1, 1, D)
    model.bare.requires_grad_(False)
    check(model, numbers(N, T, D))
    check(model, numbers(N, T, D), layer_collection=LayerCollection.from_model(model, trainable_only=True))


def state(model: nn.Module) -> list[tuple[str, int, int, bool, Any]]:
    """Which parameters are where, in which order, with their flags."""
    return [(name, id(p), p._version, p.requires_grad, p.grad) for name, p in model.named_parameters()]


@pytest.mark.parametrize(("forward", "shape"), (TAKEN | LEFT).values(), ids=TAKEN | LEFT)
@pytest.mark.parametrize("frozen", [True, False])
def test_the_parameters_are_back_afterwards(forward: Forward, shape: tuple[int, ...], frozen: bool) -> None:
    model, x = Net(forward, *shape), numbers(N, T, D)
    model.bare.requires_grad_(not frozen)
    before, values = state(model), model.bare.detach().clone()
    check(model, x)
    assert state(model) == before
    assert isinstance(model.bare, nn.Parameter)
    assert torch.equal(model.bare, values)


def test_the_parameters_are_back_after_an_exception() -> None:
    def failing(net: Net, x: Tensor) -> Tensor:
        if not isinstance(net.bare, nn.Parameter):
            seen.append(tuple(net.bare.shape))
            raise KeyboardInterrupt
        return with_product(net, x)

    seen: list[tuple[int, ...]] = []
    model = Net(failing, D)
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        HooksGenerator(model, "regression").jacobian(numbers(N, T, D))
    assert seen == [(N, D)]
    assert state(model) == before


def use_of(model: nn.Module, axes: int) -> Use:
    plan = make_plan(model, LayerCollection.from_model(model))
    use = next(use for use in plan if "bare" in use.names)
    return replace(use, rule=StandInRule(axes))


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((1, 1, D), 0, (N, 1, D)),
        ((1, T, D), 2, (N, T, D)),
        ((D,), 0, (N, D)),
        ((D,), 2, (N, 1, 1, D)),
        ((D, 1, 1), 0, (N, D, 1, 1)),
        ((), 1, (N, 1)),
    ],
)
def test_copies_are_leaves_of_their_own(shape: tuple[int, ...], axes: int, expected: tuple[int, ...]) -> None:
    model = Net(unused, *shape)
    made = copies(use_of(model, axes), N)["bare"]
    assert made.shape == expected
    assert made.is_leaf
    assert made.requires_grad
    assert made.untyped_storage().data_ptr() != model.bare.untyped_storage().data_ptr()
    assert torch.equal(made.detach().reshape(N, -1), model.bare.detach().reshape(1, -1).expand(N, -1))


def test_replaced_holds_for_its_block_only() -> None:
    model = Net(unused, D)
    own, order = model.bare, list(model._parameters)
    with pytest.raises(ZeroDivisionError), replaced(model, {"bare": torch.zeros(N, D)}):
        assert model.bare.shape == (N, D)
        _ = 1 / 0
    assert model.bare is own
    assert list(model._parameters) == order
