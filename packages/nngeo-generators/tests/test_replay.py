"""Replaying a call on each of its examples: against plain autograd on each example."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nngeo_core import Call, UnsupportedLayerError
from nngeo_core.testing import relative_error
from nngeo_generators.replay import Replay, floating_tensors

Build = Callable[..., nn.Module]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def replayed(module: nn.Module, *arguments: Any, n: int, **where: Any) -> tuple[Tensor, list[Tensor]]:
    """The Jacobian of three random directions, and those."""
    module.double()
    with torch.no_grad():
        outputs = floating_tensors(module(*arguments))
    u = [draw(3, *part.shape) for part in outputs]
    call = Call(arguments, {}, "a", n, **where)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return Replay(module, call, parameters).jacobian(u), u


def plain(module: nn.Module, arguments: list[list[Any]], u: list[list[Tensor]]) -> Tensor:
    """The same from plain autograd: `arguments` and directions of each example, shape (c, n, d)."""
    examples = []
    for given, directions in zip(arguments, u, strict=True):
        outputs = floating_tensors(module(*given))
        rows = []
        for k in range(3):
            total = torch.stack([(part * d[k]).sum() for part, d in zip(outputs, directions, strict=True)]).sum()
            parts = torch.autograd.grad(total, list(module.parameters()), retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([part.flatten() for part in parts]))
        examples.append(torch.stack(rows))
    return torch.stack(examples, 1)


class Untraceable(nn.Linear):
    """vmap cannot follow its branch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sin() if x.sum() > 0 else super().forward(x)


class OneByOne(nn.Linear):
    """vmap cannot follow its backward pass, neither for several examples nor for several directions."""

    def forward(self, x: Tensor) -> Tensor:
        return NumpyDouble.apply(super().forward(x))


class NumpyDouble(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.from_numpy(2 * gradient.numpy())


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "module", [nn.Linear(3, 2), nn.PReLU(3), nn.Bilinear(3, 3, 2), Untraceable(3, 2), OneByOne(3, 2)], ids=repr
)
def test_examples_first(module: nn.Module, n: int) -> None:
    """Two and three examples, too: as many as there are directions or parameters, where vmap of prelu is wrong."""
    x = [draw(n, 3)] * (2 if isinstance(module, nn.Bilinear) else 1)
    found, (u,) = replayed(module, *x, n=n)
    alone = [[part[i : i + 1] for part in x] for i in range(n)]
    assert relative_error(found, plain(module, alone, [[u[:, i : i + 1]] for i in range(n)])) < 1e-12


@pytest.mark.parametrize("positions", [4, 5])
def test_examples_on_the_axes_given(positions: int) -> None:
    """(T, n, D) in and out, the hidden state on another axis; also T = n."""
    module, x = nn.GRU(3, 2), draw(positions, 4, 3)
    where = {"argument_axes": (1,), "output_axes": (1, 1)}
    found, u = replayed(module, x, n=4, **where)
    expected = plain(module, [[x[:, i : i + 1]] for i in range(4)], [[d[:, :, i : i + 1] for d in u] for i in range(4)])
    assert relative_error(found, expected) < 1e-12


def test_shared_arguments_are_not_cut(build: Build) -> None:
    module = build(lambda net, x, table, k: net.a(x + table[k]), a=nn.Linear(3, 2))
    x, table = draw(4, 3), draw(6, 3)
    found, (u,) = replayed(module, x, table, 2, n=4)
    expected = plain(module, [[x[i : i + 1], table, 2] for i in range(4)], [[u[:, i : i + 1]] for i in range(4)])
    assert relative_error(found, expected) < 1e-12


def test_some_parameters_and_several_outputs(build: Build) -> None:
    module = build(lambda net, x: {"y": (net.a(x), None), "z": x.sin()}, a=nn.Linear(3, 2))
    x, u = draw(4, 3), [draw(3, 4, 2), draw(3, 4, 3)]
    found = Replay(module, Call((x,), {}, "a", 4), {"a.bias": module.a.bias.detach()}).jacobian(u)
    assert relative_error(found, u[0]) < 1e-14


def test_no_examples(build: Build) -> None:
    found, _ = replayed(build(lambda net, x: net.a(x), a=nn.Linear(3, 2)), draw(0, 3), n=0)
    assert found.shape == (3, 0, 8)


@pytest.mark.parametrize("n", [1, 4])
def test_outputs_that_do_not_depend_on_the_parameters(n: int, build: Build) -> None:
    found, _ = replayed(build(lambda net, x: x.sin(), a=nn.Linear(3, 2)), draw(n, 3), n=n)
    assert found.shape == (3, n, 8) and not found.any()


@pytest.mark.parametrize("n", [1, 4])
def test_what_a_module_raises_is_told_with_its_name(n: int, build: Build) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        raise KeyError("no such thing")

    module = build(forward, a=nn.Linear(3, 2))
    with pytest.raises(UnsupportedLayerError) as error:
        Replay(module, Call((draw(n, 3),), {}, "block.1", n), {"a.bias": module.a.bias}).jacobian([draw(3, n, 2)])
    assert str(error.value) == ("'block.1' (FunctionalNet) cannot be run again on one example alone: 'no such thing'")


def test_a_module_that_returns_something_else_for_one_example_is_refused(build: Build) -> None:
    module = build(lambda net, x: net.a(x)[: 1 + len(x) // 4].flatten(), a=nn.Linear(3, 2))
    with pytest.raises(UnsupportedLayerError, match="cannot be run again on one example alone"):
        Replay(module, Call((draw(4, 3),), {}, "a", 4), {"a.bias": module.a.bias}).jacobian([draw(3, 4, 2)])


def test_floating_tensors_are_found_wherever_they_are() -> None:
    nested = {"x": (torch.ones(1), 3, None), "y": [torch.ones(2), torch.ones(3, dtype=torch.long)]}
    assert [part.shape for part in floating_tensors(nested)] == [(1,), (2,)]
    assert len(tree_leaves(nested)) == 5
