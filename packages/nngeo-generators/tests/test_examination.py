"""The examination of a first batch: what is checked, what is healed, and by which plan the numbers are exact."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nngeo_core import UnsupportedLayerError
from nngeo_core.testing import output_jacobian, relative_error
from nngeo_generators import HooksGenerator
from nngeo_generators.examination import check_examples, run_unwritten
from nngeo_generators.network import Network

Build = Callable[..., nn.Module]
Hooks = Callable[..., HooksGenerator]

X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def ways(generator: HooksGenerator, x: Tensor = X) -> dict[str, str]:
    """How each layer is read after the examination: rule, and path of the module."""
    generator.jacobian(x)
    return {use.layer_id: f"{use.rule.name} {use.path}".strip() for use in generator._known.plan}


def network(forward: Callable[[Tensor], Any]) -> Network:
    return Network(nn.Module(), forward)


@pytest.mark.parametrize(("forward", "message"), [
    (lambda x: x - x.mean(0), "an example's outputs differ with the others in its batch"),
    (lambda x: torch.cat([x[:2], x[1:2], x[3:]]) if len(x) > 4 else x, "an example's outputs differ with the others"),
    (lambda x: x @ x.T, "an example's outputs differ with the others"),
    (lambda x: x + torch.rand(1), "two forward passes over the same examples give different outputs"),
    (lambda x: x.mul_(2) / 2, "the model changes its inputs in place, so that every pass sees others"),
    (lambda x: F.batch_norm(x, None, None, training=True), "the model cannot be called on 1 of the examples alone: Expected"),
])  # fmt: skip
def test_outputs_that_are_not_of_one_example_each(forward: Callable[[Tensor], Any], message: str) -> None:
    net, x = network(forward), X.clone()
    with pytest.raises(UnsupportedLayerError, match=message):
        check_examples(net, x, run_unwritten(net, x))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_outputs_that_are(n: int) -> None:
    net = network(lambda x: x.sin())
    check_examples(net, X[:n], run_unwritten(net, X[:n]))


def test_what_the_model_itself_raises_comes_out_as_it_is(build: Build, hooks: Hooks) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    for call in (HooksGenerator.jacobian, HooksGenerator._jacobian):
        with pytest.raises(ZeroDivisionError, match="mine"):
            call(hooks(build(forward, a=nn.Linear(3, 2))), X, None)


def test_layers_that_can_be_read_stay_as_they_are(build: Build, hooks: Hooks) -> None:
    model = build(lambda net, x: net.b(net.a(x).tanh()), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    assert ways(hooks(model)) == {"a": "linear a", "b": "linear b"}


@pytest.mark.parametrize(("forward", "a"), [
    (lambda s, x: s.head(s.block[1](s.block[0](x).tanh())), "linear block.0"),
    (lambda s, x: s.head(s.block(x)), "linear block.0"),
    (lambda s, x: s.head(F.linear(x, s.block[0].weight, s.block[0].bias)), "generic"),
    (lambda s, x: s.head(s.block(x.flip(0)).flip(0)), "generic"),
])  # fmt: skip
def test_only_the_layers_that_differ_are_promoted(
    forward: Callable[..., Tensor], a: str, build: Build, hooks: Hooks
) -> None:
    block = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    found = ways(hooks(build(forward, block=block, head=nn.Linear(3, 2))))
    assert (found["block.0"], found["head"]) == (a, "linear head")


def test_a_patched_module_is_promoted_no_further_than_itself(build: Build, hooks: Hooks) -> None:
    model = build(lambda s, x: s.block(x), block=nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    generator = hooks(model)
    model.block[0].forward = lambda x: F.linear(x, model.block[0].weight.exp(), model.block[0].bias)
    assert ways(generator) == {"block.0": "generic block.0", "block.1": "linear block.1"}


def test_a_batch_of_one_settles_nothing_for_the_next(build: Build, hooks: Hooks) -> None:
    """Bare parameters of a container: for one example, any shape of a stand-in will do."""
    model = build(lambda s, x: s.a(x * s.scale).mean(1), a=nn.Linear(3, 2))
    model.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))
    generator = hooks(model)
    sequences = torch.stack([X, X.sin()], 1)
    assert [ways(generator, x)[""] for x in (sequences[:1], sequences)] == ["stand-in"] * 2


def test_backward_passes_go_one_by_one_where_they_must(build: Build, hooks: Hooks) -> None:
    class Numpy(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.clone())
        backward = staticmethod(lambda ctx, gradient: torch.from_numpy(gradient.numpy()))

    plain, custom = (
        hooks(build(forward, a=nn.Linear(3, 2))) for forward in (lambda s, x: s.a(x), lambda s, x: Numpy.apply(s.a(x)))
    )
    assert ways(plain) == ways(custom) == {"a": "linear a"}
    assert (plain._known.batched, custom._known.batched) == (True, False)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_derivatives_that_are_random_are_refused(n: int, build: Build, hooks: Hooks) -> None:
    """The outputs are the same each time: only a gradient from another pass shows it."""

    def noisy(h: Tensor) -> Tensor:
        scaled = torch.rand_like(h) * h
        return h + scaled - scaled.detach()

    model = build(lambda s, x: noisy(s.b(s.a(x).tanh())), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    with pytest.raises(UnsupportedLayerError, match="differs from a plain gradient"):
        hooks(model).jacobian(X[:n])


@pytest.mark.parametrize("scale", [1e-3, 1e-8, 1e-10])
def test_a_layer_with_a_small_gradient_is_measured_by_itself(scale: float, build: Build, hooks: Hooks) -> None:
    """Its weight is used outside of its call too, which the whole gradient does not show."""
    model = build(
        lambda net, x: net.head(x) + scale * (net.a(x) + F.linear(x.tanh(), net.a.weight)),
        head=nn.Linear(3, 2), a=nn.Linear(3, 2),
    )  # fmt: skip
    generator = hooks(model)
    assert ways(generator)["a"] == "generic"
    found, expected = generator.jacobian(X).layers["a"].to_dense(), output_jacobian(model, X, ["a.weight", "a.bias"])
    assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_layer_whose_gradient_is_all_rounding_stays_with_its_rule(
    dtype: torch.dtype, build: Build, hooks: Hooks
) -> None:
    """The bias of the keys shifts all scores of a query alike, which the softmax does not see."""

    def attention(net: Any, x: Tensor) -> Tensor:
        tokens = x.unsqueeze(2) * torch.ones(3, dtype=x.dtype)
        scores = net.q(tokens) @ (net.k(tokens) + net.key_bias(torch.ones_like(tokens))).mT
        return (scores.softmax(-1) @ net.v(tokens)).sum(1)

    parts = {name: nn.Linear(3, 3, bias=False) for name in ("q", "k", "v", "key_bias")}
    model = build(attention, **parts).to(dtype)
    assert set(ways(hooks(model), X.to(dtype)).values()) == {f"linear {name}" for name in parts}
