"""Backward passes for several directions, at once or one by one."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from nngeo_core.testing import relative_error
from nngeo_generators.backward import pull_back_each


def graph() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    x, unused = torch.randn(2, 3, requires_grad=True), torch.ones(1, requires_grad=True)
    return [x.sin(), 3 * x[:, :1]], [x, unused], [torch.randn(4, 2, 3), torch.randn(4, 2, 1)]


@pytest.mark.parametrize("directions", [1, 4])
@pytest.mark.parametrize("batched", [True, False])
def test_derivatives_of_every_direction(directions: int, batched: bool) -> None:
    outputs, inputs, u = graph()
    x, (first, second) = inputs[0], [part[:directions] for part in u]
    found, none = pull_back_each(outputs, inputs, [first, second], batched=batched)
    assert found is not None and none is None
    assert relative_error(found, first * x.cos() + torch.nn.functional.pad(3 * second, (0, 2))) < 1e-6


@pytest.mark.parametrize("batched", [True, False])
def test_the_graph_is_kept_on_request(batched: bool) -> None:
    outputs, inputs, u = graph()
    pull_back_each(outputs, inputs, u, keep_graph=True, batched=batched)
    pull_back_each(outputs, inputs, u, batched=batched)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        pull_back_each(outputs, inputs, u, batched=batched)


def test_edges_do_for_tensors() -> None:
    x = torch.randn(2, requires_grad=True)
    h = x.sin()
    (found,) = pull_back_each([h.cos()], [get_gradient_edge(h)], [torch.ones(1, 2)])
    assert found is not None and found.shape == (1, 2)


def test_a_direction_without_derivative_among_others_is_zero() -> None:
    """A custom backward may return None for some directions."""

    class Sometimes(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor | None:
            return gradient if gradient[0] > 0 else None

    x = torch.ones(1, requires_grad=True)
    (found,) = pull_back_each([Sometimes.apply(x)], [x], [torch.tensor([[2.0], [-1.0]])], batched=False)
    assert found is not None and found.tolist() == [[2.0], [0.0]]
