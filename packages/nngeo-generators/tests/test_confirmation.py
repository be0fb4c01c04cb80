"""The check that a stream's own first pass is put to: as strict as an examination, and fewer passes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nngeo_core import ClassifLogits, MultilabelLogits, NonFiniteError, ShapeError, UnsupportedLayerError
from nngeo_core.testing import output_jacobian, relative_error
from nngeo_generators import HooksGenerator
from nngeo_generators.confirmation import are_outputs, scattered

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
    assert "one copy for each example" in str(generator.coverage())


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


ALTERNATING = X.clone()
ALTERNATING[:, 2] = torch.tensor([0.0, 1.0]).repeat(20)


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_kinds_of_examples_that_alternate_are_both_looked_at(first: float, build: Build, hooks: Hooks) -> None:
    """Hard routing to two experts, one of which is used outside its call."""

    def route(net: Any, x: Tensor) -> Tensor:
        return torch.where(x[:, 2:] == first, net.a(x), F.linear(x, net.b.weight, net.b.bias))

    generator = hooks(build(route, a=nn.Linear(3, 2), b=nn.Linear(3, 2)))
    found = jacobian(generator, ALTERNATING.split([16, 16, 8]))
    assert relative_error(found, expected(generator, ALTERNATING)) < 1e-12


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_one_kind_that_is_random_is_refused(first: float, build: Build, hooks: Hooks) -> None:
    model = build(
        lambda net, x: net.a(x) * torch.where(x[:, 2:] == first, torch.rand(len(x), 1), 1.0), a=nn.Linear(3, 2)
    )
    with pytest.raises(UnsupportedLayerError):
        jacobian(hooks(model), ALTERNATING.split([16, 16, 8]))


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("period", [2, 4, 8])
def test_every_kind_of_a_period_is_looked_at_equally_often(period: int, count: int) -> None:
    found = scattered(100, count)
    assert len(found) == len(set(found.tolist())) == count
    assert 100 - 2 * count <= found.min()
    assert found.max() < 100
    assert len(set((found // 2).tolist())) == count  # no neighbours of one pair
    if period <= count:
        assert (found % period).bincount().tolist() == [count // period] * period


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.b(net.a(x) - (net.a(x).mean(0) if len(x) > 8 else 0)),
        lambda net, x: net.b(net.a(x)) * (torch.rand(len(x), 1) if len(x) > 8 else 1),
        lambda net, x: net.b(net.a(x)) + (0.1 if len(x) > 24 else 0),
    ],
    ids=["mixed", "random", "shifted"],
)
def test_what_is_done_with_many_examples_alone_is_refused(
    forward: Callable[[Any, Tensor], Tensor], build: Build, hooks: Hooks
) -> None:
    generator = hooks(build(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2)))
    for _ in range(2):  # an error that was caught does not make it trusted
        with pytest.raises(UnsupportedLayerError, match="mixes examples"):
            jacobian(generator)


def refilled(after: float) -> Iterator[Tensor]:
    """Batches read into the same memory, which holds something else in the end."""
    memory = torch.empty(16, 3, dtype=torch.float64)
    for batch in X[:32].split(16):
        memory.copy_(batch)
        yield memory
    memory.fill_(after)


@pytest.mark.parametrize("after", [0.0, torch.nan])
def test_examples_are_examined_as_they_came(after: float, build: Build, hooks: Hooks) -> None:
    generator = hooks(build(NEEDS_ANOTHER_WAY["penalty"], a=nn.Linear(3, 4), b=nn.Linear(4, 2)))
    assert relative_error(jacobian(generator, refilled(after)), expected(generator, X[:32])) < 1e-12


@pytest.mark.parametrize("likelihood", [None, ClassifLogits()])
def test_no_outputs_are_no_reason_to_wait(likelihood: Any, build: Build, hooks: Hooks) -> None:
    generator = hooks(build(lambda net, x: net.a(x)[:, :0], a=nn.Linear(3, 2)))
    with torch.no_grad():
        assert list(generator.stream([X])) == []


def test_streams_within_streams_are_each_checked(build: Build, hooks: Hooks) -> None:
    generator = hooks(build(lambda net, x: net.a(x) + others(net.a(x)), a=nn.Linear(3, 2)))

    def nested() -> Iterator[Tensor]:
        yield X[:16]
        generator.model.function, mixing = (lambda net, x: net.a(x)), generator.model.function
        list(generator.stream([X[16:32]]))
        generator.model.function = mixing

    with pytest.raises(UnsupportedLayerError, match="mixes examples"):
        jacobian(generator, nested())


def test_examples_before_the_first_batch_of_several_are_not_taken_for_it(build: Build, hooks: Hooks) -> None:
    generator = hooks(two_layers(build))
    sizes = counted(generator.model)
    jacobian(generator, X.split([1, 39]))
    assert sum(n == 40 for n in sizes) == 1


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 2)),
            torch.linspace(-1, 1, 144).view(16, 1, 3, 3),
        ),
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), X[:16]),
        (nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)), torch.arange(32).view(16, 2) % 5),
        (
            nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), nn.Flatten()),
            X[:16, :2].repeat(1, 4).view(16, 2, 4),
        ),
    ],
    ids=["convolution", "normalisation", "embedding", "attention"],
)
def test_layers_of_many_kinds_are_confirmed(model: nn.Module, x: Tensor, hooks: Hooks) -> None:
    generator = hooks(model.double())
    sizes = counted(generator.model)
    found = jacobian(generator, [x.double() if x.is_floating_point() else x])
    assert 4 not in sizes  # nothing was examined
    x = x.double() if x.is_floating_point() else x
    assert relative_error(found, expected(generator, x)) < 1e-10


def test_a_table_that_is_a_head_too_is_confirmed(hooks: Hooks) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x).tanh().mean(1))

    generator = hooks(Tied().double())
    tokens, sizes = torch.arange(32).view(16, 2) % 5, counted(generator.model)
    found = jacobian(generator, [tokens])
    assert 4 not in sizes
    assert relative_error(found, expected(generator, tokens)) < 1e-12


def test_directions_are_the_outputs_one_by_one_or_not() -> None:
    identity = torch.eye(4)[:, None].expand(4, 3, 4)
    assert are_outputs(identity)
    assert are_outputs(identity.view(4, 3, 2, 2))
    assert not are_outputs(2 * identity)
    assert not are_outputs(identity[:3])
    assert not are_outputs(identity.flip(0))
