"""Linear functions as differentiable ones, whatever they do inside."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Rows", "apply_linear", "apply_quadratic"]

Rows = Callable[[Tensor], Tensor]
"""A linear function of each row of a tensor (k, d), in exact arithmetic."""


def apply_linear(act: Rows, act_transposed: Rows, rows: Tensor) -> Tensor:
    """`act(rows)`, differentiable any number of times: the derivative of a linear function is its transpose.

    Args:
        act: M v for each row v of a tensor (k, d). It runs without a graph, so that it may call a model or iterate.
        act_transposed: M^T v for each row; the same function where M is symmetric.
        rows: Shape (k, d).

    Example:
        >>> v = torch.ones(1, 2, requires_grad=True)
        >>> apply_linear(lambda rows: 3 * rows.detach(), lambda rows: 3 * rows.detach(), v).sum().backward()
        >>> v.grad
        tensor([[3., 3.]])
    """
    found: Tensor = _Linear.apply(rows, act, act_transposed)  # type: ignore[no-untyped-call]
    return found


def apply_quadratic(form: Rows, act: Rows, v: Tensor) -> Tensor:
    """v^T M v, 0-dimensional, differentiable any number of times: its derivative is 2 M v.

    Args:
        form: v^T M v for v (d,), which may be cheaper than M v. It runs without a graph.
        act: M v for each row v of a tensor (k, d), M symmetric, likewise.
        v: Shape (d,).

    Example:
        >>> v = torch.ones(2, requires_grad=True)
        >>> apply_quadratic(lambda v: 3 * (v @ v), lambda rows: 3 * rows, v).backward()
        >>> v.grad
        tensor([6., 6.])
    """
    found: Tensor = _Quadratic.apply(v, form, act)  # type: ignore[no-untyped-call]
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, act: Rows, act_transposed: Rows) -> Tensor:
        ctx.acts = (act, act_transposed)
        return act(rows.detach())

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        act, act_transposed = ctx.acts
        return apply_linear(act_transposed, act, cotangent), None, None


class _Quadratic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, form: Rows, act: Rows) -> Tensor:
        ctx.save_for_backward(v)
        ctx.act = act
        return form(v.detach())

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        (v,) = ctx.saved_tensors
        return 2 * cotangent * apply_linear(ctx.act, ctx.act, v.unsqueeze(0))[0], None, None
