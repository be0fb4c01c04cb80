"""Which example a captured row belongs to."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nngeo_generators.order import has_moved, may_move_rows, tagged

X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize(("operation", "moves"), [
    (lambda h: h.tanh() @ h.T, False),
    (lambda h: h[:, 1:].sum(0), False),
    (lambda h: h[1:].sum(0), True),
    (lambda h: torch.stack([h[1], h[0]]), True),
    (lambda h: torch.cat([h, h], 1), False),
    (lambda h: h.masked_fill(h > 0, 0.0), False),
    (lambda h: h[h[:, 0].argsort()], True),
    (lambda h: h.index_select(0, torch.tensor([0, 0])).exp(), True),
    (lambda h: h.sort(0).values + 1, True),
    (lambda h: h.flip(0), True),
    (lambda h: h.scatter(0, torch.zeros(1, 3, dtype=torch.long), h[:1]), True),
])  # fmt: skip
def test_operations_that_may_move_rows(operation: Callable[[Tensor], Tensor], moves: bool) -> None:
    assert may_move_rows(operation(X)) == moves


def test_a_custom_function_may_do_anything() -> None:
    class Identity(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.clone())
        backward = staticmethod(lambda ctx, gradient: gradient)

    assert may_move_rows(Identity.apply(X).sin())


def test_outputs_without_a_graph_move_nothing() -> None:
    assert not may_move_rows(X.detach())


def gradients(h: Tensor, outputs: Tensor) -> Tensor:
    return torch.stack([torch.autograd.grad(outputs, h, u, retain_graph=True)[0] for u in tagged(outputs)])


@pytest.mark.parametrize(("forward", "axes", "moved"), [
    (lambda h: h.sin(), (0,), False),
    (lambda h: h.flip(0), (0,), True),
    (lambda h: h[[0, 2, 1, 3, 4]], (0,), True),
    (lambda h: h - h.mean(0), (0,), True),
    (lambda h: h.detach() * h.sum() * 0, (0,), False),
    (lambda h: h.T, (1,), False),
    (lambda h: h.T[:, [1, 0, 2, 3, 4]].flip(0), (1,), True),
    (lambda h: (h @ torch.ones(3, 5, dtype=h.dtype)).T.sin().T, (0, 1), False),
])  # fmt: skip
def test_rows_that_lie_elsewhere_than_their_examples(
    forward: Callable[[Tensor], Tensor], axes: tuple[int, ...], moved: bool
) -> None:
    outputs = forward(X)
    assert has_moved(gradients(X, outputs), axes) == moved


def test_positions_may_be_first() -> None:
    """(T, n, D), also where T = n."""
    h = torch.randn(5, 5, 2, dtype=torch.float64, requires_grad=True)
    found = gradients(h, nn.Flatten()(h.transpose(0, 1)))
    assert not has_moved(found, (1,)) and has_moved(found, (0,)) and not has_moved(found, (0, 1))
