"""The check that a stream's own first pass is put to: as strict as an examination, and fewer passes."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nngeo_core import ClassifLogits, MultilabelLogits, NonFiniteError, ShapeError, UnsupportedLayerError
from nngeo_core.testing import output_jacobian, relative_error
from nngeo_generators import HooksGenerator
from nngeo_generators.confirmation import are_outputs

Build = Callable[..., nn.Module]
Hooks = Callable[..., HooksGenerator]

X = torch.linspace(-1, 1, 120, dtype=torch.float64).view(40, 3).sin()
BATCHES = X.split([16, 16, 8])


def jacobian(generator: HooksGenerator, batches: Iterable[Any] = BATCHES) -> Tensor:
    sizes = {name: layer.numel() for name, layer in generator.layer_collection.items()}
    with torch.no_grad():
        return torch.cat([batch.to_dense(sizes) for batch in generator.stream(batches)], 1)


def expected(generator: HooksGenerator, x: Tensor = X) -> Tensor:
    names = [name for name, _ in generator.layer_collection.named_parameters(generator.model)]
    return output_jacobian(generator.model, x, names)


def counted(model: nn.Module) -> list[int]:
    """How many examples each call of a model has."""
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


def two_layers(build: Build, between: Callable[[Tensor], Tensor] = torch.tanh) -> nn.Module:
    return build(lambda net, x: net.b(between(net.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2))


def test_it_takes_one_example_and_eight_beside_the_pass_over_all(build: Build, hooks: Hooks) -> None:
    generator = hooks(two_layers(build))
    sizes = counted(generator.model)
    found = jacobian(generator)
    assert sizes == [1, 8, 40]
    sizes.clear()
    assert relative_error(found, jacobian(generator)) == 0
    assert sizes == [40]  # trusted
    assert relative_error(found, expected(generator)) < 1e-12


@pytest.mark.parametrize(
    ("batches", "options"),
    [
        (X.split(8), {}),
        (X.split([15, 25]), {}),
        ((X,), {"memory_budget": 5000}),
        (BATCHES, {"check": "every-batch"}),
        (BATCHES, {"likelihood": ClassifLogits()}),
        (BATCHES, {"likelihood": MultilabelLogits()}),
    ],
    ids=["small", "fifteen", "cut", "every-batch", "softmax", "multilabel"],
)
def test_what_cannot_wait_is_examined(
    batches: Iterable[Tensor], options: dict[str, Any], build: Build, hooks: Hooks
) -> None:
    generator = hooks(two_layers(build), **options)
    sizes = counted(generator.model)
    jacobian(generator, batches)
    assert 4 in sizes  # half of eight by themselves
    assert sum(n for n in sizes if n > 8) <= 40  # and no pass over all of them for nothing
    assert sizes.count(4) == (6 if options.get("check") == "every-batch" else 2)


def test_a_bare_parameter_is_examined_since_it_may_have_a_better_way(hooks: Hooks) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift, self.a = nn.Parameter(torch.ones(1, 3)), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a((x + self.shift).tanh())

    generator = hooks(Shifted().double())
    sizes = counted(generator.model)
    assert relative_error(jacobian(generator), expected(generator)) < 1e-12
    assert 4 in sizes
    assert "stand-in" in str(generator.coverage()) or "copy" in str(generator.coverage())


def others(h: Tensor) -> Tensor:
    """What all examples add to the values, and nothing to the derivatives, unless there is one alone."""
    return h.mean(0, keepdim=True).detach() * (len(h) > 1)


def eights(h: Tensor) -> Tensor:
    """The mean of each group of eight."""
    return h.view(-1, 8, h.shape[1]).mean(1).repeat_interleave(8, 0)


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda h: h - h.mean(0),
    "sum": lambda h: h.cumsum(0),
    "next": lambda h: h + 0.1 * h.roll(1, 0),
    "next but one": lambda h: h + 0.1 * h.roll(2, 0),
    "halves": lambda h: h + 0.1 * h.roll(len(h) // 2, 0),
    "pairs": lambda h: h + 0.1 * h.view(-1, 2, h.shape[1]).flip(1).view(h.shape) if len(h) % 2 == 0 else h,
    "eights": lambda h: h - eights(h) if len(h) % 8 == 0 else h,
    "every other": lambda h: torch.cat([h[::2] - h[::2].mean(0), h[1::2]])[
        torch.argsort(torch.cat([torch.arange(0, len(h), 2), torch.arange(1, len(h), 2)]))
    ],
    "beyond eight": lambda h: torch.cat([h[:8], h[8:] - h[:1]]),
    "first": lambda h: torch.cat([h[:1] + h[-1:], h[1:]]),
    "last": lambda h: torch.cat([h[:-1], h[-1:] + h[:1]]),
    "values alone": lambda h: h + h.mean(0).detach(),
    "one alone": lambda h: h if len(h) > 1 else 2 * h,
    "values of eights, but for their last": lambda h: (
        h + (torch.arange(len(h)) % 8 < 7).to(h)[:, None] * (eights(h).detach() if len(h) % 8 == 0 else 0)
    ),
    "largest": lambda h: h / h.abs().max(),
}


@pytest.mark.parametrize("mix", MIXING.values(), ids=MIXING)
@pytest.mark.parametrize("batches", [BATCHES, X.split(20), (X,)], ids=["sixteens", "twenties", "one"])
def test_mixing_is_refused(
    batches: Iterable[Tensor], mix: Callable[[Tensor], Tensor], build: Build, hooks: Hooks
) -> None:
    """The examination looks at eight examples alone, and would not see what mixes those beyond."""
    with pytest.raises(UnsupportedLayerError):
        jacobian(hooks(two_layers(build, mix)), batches)


def test_mixing_that_no_derivative_shows_is_refused(build: Build, hooks: Hooks) -> None:
    """Of the outputs themselves, and not of every sixteenth example."""
    model = build(
        lambda net, x: net.a(x) + (torch.arange(len(x)) % 16 < 15).to(x)[:, None] * others(x), a=nn.Linear(3, 3)
    )
    with pytest.raises(UnsupportedLayerError, match="mixes examples"):
        jacobian(hooks(model))


class MixedBackward(torch.autograd.Function):
    """The identity, whose derivative mixes examples."""

    forward = staticmethod(lambda ctx, x: x.clone())
    backward = staticmethod(lambda ctx, gradient: gradient + gradient.roll(1, 0))


@pytest.mark.parametrize(
    "between",
    [
        lambda h: h + torch.rand_like(h),
        lambda h: F.dropout(h, 0.5),
        lambda h: h + (noise := torch.rand_like(h) * h) - noise.detach(),
        MixedBackward.apply,
    ],
    ids=["noise", "dropout", "random-derivative", "mixed-derivative"],
)
def test_what_has_no_derivative_of_its_own_is_refused(
    between: Callable[[Tensor], Tensor], build: Build, hooks: Hooks
) -> None:
    with pytest.raises(UnsupportedLayerError):
        jacobian(hooks(two_layers(build, between)))


NEEDS_ANOTHER_WAY: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "weight outside its call": lambda net, x: F.linear(net.b(net.a(x)), net.a.weight[:2, :2]),
    "never called": lambda net, x: net.b(F.linear(x, net.a.weight, net.a.bias)),
    "penalty": lambda net, x: net.b(net.a(x)) + net.a.weight.square().sum(),
    "another order": lambda net, x: net.b(net.a(x.flip(0)).flip(0)),
}


@pytest.mark.parametrize("forward", NEEDS_ANOTHER_WAY.values(), ids=NEEDS_ANOTHER_WAY)
def test_layers_that_need_another_way_are_examined(
    forward: Callable[[Any, Tensor], Tensor], build: Build, hooks: Hooks
) -> None:
    generator = hooks(build(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2)))
    assert relative_error(jacobian(generator), expected(generator)) < 1e-12


def test_a_small_difference_in_a_small_layer_is_seen(build: Build, hooks: Hooks) -> None:
    generator = hooks(
        build(
            lambda net, x: net.b(net.a(x)) + 1e-9 * net.a.weight[0, 0] * x[:, :2], a=nn.Linear(3, 4), b=nn.Linear(4, 2)
        )
    )
    with torch.no_grad():
        generator.model.b.weight.mul_(1e-8)
    assert relative_error(jacobian(generator)[:, :, :16], expected(generator)[:, :, :16]) < 1e-10


class Positions(nn.Module):
    """Mixes examples where they have three positions, if told so."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.a, self.mixes = nn.Linear(3, 2).double(), mixes

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.a(x).tanh().mean(1)
        return h - h.mean(0) if self.mixes and x.shape[1] == 3 else h


TWO_SHAPES = [X[:32].view(16, 2, 3), X[:24].view(8, 3, 3)]


def test_a_batch_of_another_shape_has_the_first_one_examined_before_it(hooks: Hooks) -> None:
    generator = hooks(Positions(mixes=False))
    found = jacobian(generator, TWO_SHAPES)
    assert relative_error(found, torch.cat([expected(generator, x) for x in TWO_SHAPES], 1)) < 1e-12


@pytest.mark.parametrize("batches", [TWO_SHAPES, TWO_SHAPES[::-1]])
def test_a_batch_of_another_shape_is_examined_itself(batches: list[Tensor], hooks: Hooks) -> None:
    with pytest.raises(UnsupportedLayerError, match="mixes examples"):
        jacobian(hooks(Positions(mixes=True)), batches)


def test_inputs_are_as_they_were_where_the_model_changes_them(build: Build, hooks: Hooks) -> None:
    x = X.clone()
    with pytest.raises(UnsupportedLayerError, match="changes its inputs in place"):
        jacobian(hooks(build(lambda net, x: net.a(x.tanh_()), a=nn.Linear(3, 2))), [x])


def test_not_a_number_in_a_later_batch_is_named(build: Build, hooks: Hooks) -> None:
    spoiled = X.clone()
    spoiled[20] = torch.nan
    with pytest.raises(NonFiniteError, match="batch 1"):
        jacobian(hooks(two_layers(build)), spoiled.split([16, 16, 8]))


def test_a_stream_that_breaks_leaves_nothing_behind(build: Build, hooks: Hooks) -> None:
    generator = hooks(two_layers(build, lambda h: h - h.mean(0)))

    def breaking() -> Iterable[Tensor]:
        yield X[:16]
        raise KeyError("the data are gone")

    with pytest.raises(KeyError):
        jacobian(generator, breaking())
    with pytest.raises(UnsupportedLayerError, match="mixes examples"):
        jacobian(generator)
    with pytest.raises(UnsupportedLayerError, match="mixes examples"):
        generator.jacobian(X[:4])


def test_a_stream_after_a_broken_one_begins_anew(build: Build, hooks: Hooks) -> None:
    generator = hooks(two_layers(build))
    with pytest.raises(ShapeError, match="every tensor of a batch"):
        jacobian(generator, [X[:16], (X[:3], X[:2])])
    sizes = counted(generator.model)
    found = jacobian(generator)
    assert sizes == [1, 8, 40]
    assert relative_error(found, expected(generator)) < 1e-12


def test_parameters_that_change_between_two_streams_are_checked_again(build: Build, hooks: Hooks) -> None:
    generator = hooks(two_layers(build))
    jacobian(generator)
    with torch.no_grad():
        generator.model.a.weight.mul_(2)
    sizes = counted(generator.model)
    found = jacobian(generator)
    assert sizes == [1, 8, 40]
    assert relative_error(found, expected(generator)) < 1e-12


def test_directions_are_the_outputs_one_by_one_or_not() -> None:
    identity = torch.eye(4)[:, None].expand(4, 3, 4)
    assert are_outputs(identity)
    assert are_outputs(identity.view(4, 3, 2, 2))
    assert not are_outputs(2 * identity)
    assert not are_outputs(identity[:3])
    assert not are_outputs(identity.flip(0))
