"""The floor of an operation: the matrix products and convolutions that it must do, called bare on the problem's shapes.

Counted are linear layers and convolutions; attention, normalisation and activations are not, so that the floor of a
transformer is a little too low.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.peers.problem import Operation, Problem
from benchmarks.peers.timing import plain, seconds

CHUNKS = (2, 8, 64)
"""Numbers of examples that are tried together: the fastest is the floor."""
LARGEST = 1 << 31
"""Bytes that the tensors of a chunk may take: a larger one is not tried."""


@dataclass
class Bare:
    """One call of a layer, as random tensors of the shapes that m examples have.

    Attributes:
        module: A linear layer or a convolution.
        x: Its input.
        c: The number of output directions.
        first: Whether nothing below needs a gradient.
    """

    module: nn.Module
    x: Tensor
    c: int
    first: bool

    def __post_init__(self) -> None:
        self.convolution = isinstance(self.module, nn.Conv2d)
        weight = self.module.weight.detach()
        self.weight = weight if self.convolution or isinstance(self.module, nn.Linear) else weight.T
        self.m = len(self.x)
        self.y = self.apply()
        self.g = torch.randn(self.c * self.m, *self.y.shape[1:])
        if self.convolution:
            conv = self.module
            self.patches = nn.functional.unfold(self.x, conv.kernel_size, padding=conv.padding, stride=conv.stride)
            self.rows = self.g.view(self.c, self.m, self.y.shape[1], -1).transpose(0, 1).flatten(1, 2).contiguous()
        elif self.x.ndim > 2:
            self.patches = self.x.flatten(1, -2).mT.contiguous()
            g = self.g.flatten(1, -2).mT
            self.rows = g.view(self.c, self.m, *g.shape[1:]).transpose(0, 1).flatten(1, 2).contiguous()
        self.shared = self.convolution or self.x.ndim > 2

    def apply(self) -> Tensor:
        """The layer without its bias."""
        if self.convolution:
            return nn.functional.conv2d(self.x, self.weight, None, self.module.stride, self.module.padding)
        return self.x @ self.weight.T

    def backward(self, c: int) -> None:
        """The derivative with respect to the input for c directions."""
        if self.first:
            return
        if self.convolution:
            for g in self.g.split(self.m)[:c]:
                self.convolution_backward(g, (True, False, False))
        else:
            self.g[: c * self.m] @ self.weight

    def convolution_backward(self, g: Tensor, wanted: tuple[bool, bool, bool]) -> None:
        """The derivative of a convolution with respect to its input or weight."""
        conv = self.module
        torch.ops.aten.convolution_backward(
            g, self.x, self.weight, None, conv.stride, conv.padding, (1, 1), False, (0, 0), 1, wanted
        )

    def weight_gradient(self) -> None:
        """The derivative with respect to the weight, for one direction."""
        g = self.g[: self.m]
        if self.convolution:
            self.convolution_backward(g, (False, True, False))
        else:
            g.flatten(0, -2).T @ self.x.flatten(0, -2)

    def tangent(self) -> None:
        """How the output changes with the weight, and with the input where that changes."""
        self.apply()
        if not self.first:
            self.apply()

    def gradients(self) -> None:
        """Per-example gradients of all directions where positions are shared; elsewhere one product of squares."""
        if self.shared:
            self.rows @ self.patches.mT
        else:
            self.g[: self.m].T @ self.x

    def traces(self) -> None:
        """Squared norms: per-example gradients, or Gram matrices of positions where those are smaller; else sums of squares."""
        if not self.shared:
            self.g.square().sum()
            return
        positions, width, rows = self.patches.shape[2], self.patches.shape[1], self.rows.shape[1]
        if positions * (width + rows) < width * rows:
            self.patches.mT @ self.patches
            self.rows.mT @ self.rows
        else:
            self.rows @ self.patches.mT

    def factors(self) -> None:
        """Both Kronecker factors."""
        if self.shared:
            columns = self.patches.transpose(0, 1).flatten(1)
            columns @ columns.T
            g = self.rows.unflatten(1, (self.c, -1)).transpose(0, 2).flatten(1)
            g @ g.T
        else:
            self.x.T @ self.x
            self.g.T @ self.g

    def rotations(self) -> None:
        """Inputs and output gradients in an eigenbasis, then as `gradients`."""
        if self.shared:
            width = self.patches.shape[1]
            basis, other = (
                torch.empty(width, width),
                torch.empty(self.y.shape[1] if self.convolution else self.y.shape[-1], 0),
            )
            basis.T @ self.patches
            size = len(other)
            self.rows.view(-1, size, self.rows.shape[2]).transpose(1, 2) @ torch.empty(size, size)
        else:
            self.x @ torch.empty(self.x.shape[1], self.x.shape[1])
            self.g @ torch.empty(self.g.shape[1], self.g.shape[1])
        self.gradients()


def bare_layers(problem: Problem, m: int) -> list[Bare]:
    """The layers of a problem with tensors of the shapes that they see for m examples."""
    seen: list[tuple[nn.Module, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0].detach())))
        for module in problem.model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) or type(module).__name__ == "Conv1D"
    ]
    with torch.no_grad():
        problem.model(problem.inputs[:m])
    for handle in handles:
        handle.remove()
    return [Bare(module, x, problem.outputs, first=i == 0) for i, (module, x) in enumerate(seen)]


STEPS: dict[str, tuple[tuple[str, ...], int]] = {
    "product": (("apply", "tangent", "backward", "weight_gradient"), 1),
    "quadratic form": (("apply", "tangent"), 1),
    "trace": (("apply", "backward", "traces"), 0),
    "diag": (("apply", "backward", "gradients"), 0),
    "quasidiag": (("apply", "backward", "gradients"), 0),
    "kfac": (("apply", "backward", "factors"), 0),
    "ekfac": (("apply", "backward", "factors", "apply", "backward", "rotations"), 0),
}
"""What an operation does in each layer, and for how many directions its backward pass is; 0 for all."""


def floor(problem: Problem, name: str) -> Operation | None:
    """The bare products of an operation over all examples, in the chunks that serve it best; None where it is not counted."""
    if name not in STEPS:
        return None
    steps, directions = STEPS[name]
    largest = max(layer.y.numel() for layer in bare_layers(problem, 1)) * problem.outputs * 4
    sizes = [size for size in CHUNKS if size * largest < LARGEST // 8] or [1]
    candidates = [_chunked(problem, steps, directions or problem.outputs, size) for size in sizes]
    return min(candidates, key=lambda one: min(seconds(one) for _ in range(2)))


def _chunked(problem: Problem, steps: tuple[str, ...], directions: int, size: int) -> Operation:
    layers = bare_layers(problem, size)

    def run() -> None:
        for _ in range(len(problem.inputs) // size):
            for step in steps:
                for layer in layers:
                    method: Callable[..., object] = getattr(layer, step)
                    method(directions) if step == "backward" else method()

    return plain(run)
