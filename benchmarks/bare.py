"""The layers of a model, and the matrix products and convolutions that operations on them are made of, called bare.

Known are linear layers, convolutions, and the products of two activations, as in attention; normalisations, activation
functions and eigendecompositions are not.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.peers.problem import Problem

__all__ = ["Bare", "BareProduct", "bare_layers"]


@dataclass
class Bare:
    """One call of a layer, as random tensors of the shapes that m examples have.

    Attributes:
        module: A linear layer or a convolution.
        x: Its input.
        c: The number of output directions.
        first: Whether nothing below needs a gradient.
        wanted: Whether the operation is about its parameters.
        y: Its output.
        g: Output gradients of all directions, shape (c m, ...).
        shared: Whether the weight is used at several positions of an example.
        patches: With positions: the inputs of each, shape (m, A, s).
        rows: With positions: the output gradients of each, shape (m, c G, s).
    """

    module: nn.Module
    x: Tensor
    c: int
    first: bool
    wanted: bool = True

    def __post_init__(self) -> None:
        self.convolution = isinstance(self.module, nn.Conv2d)
        weight = self.module.weight.detach()
        self.weight = weight if self.convolution or isinstance(self.module, nn.Linear) else weight.T
        self.m = len(self.x)
        self.y = self.apply()
        self.g = torch.randn(self.c * self.m, *self.y.shape[1:])
        if self.convolution:
            conv = self.module
            self.many_x = self.x.repeat(self.c, 1, 1, 1)
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

    def backward(self) -> None:
        """The derivative with respect to the input for all directions."""
        if self.first:
            return
        if self.convolution:
            self.convolution_backward(self.g, self.many_x, (True, False, False))
        else:
            self.g @ self.weight

    def convolution_backward(self, g: Tensor, x: Tensor, wanted: tuple[bool, bool, bool]) -> None:
        """The derivative of a convolution with respect to its input or weight."""
        conv = self.module
        torch.ops.aten.convolution_backward(
            g, x, self.weight, None, conv.stride, conv.padding, (1, 1), False, (0, 0), 1, wanted
        )

    def weight_gradient(self) -> None:
        """The derivative with respect to the weight, for one direction."""
        g = self.g[: self.m]
        if self.convolution:
            self.convolution_backward(g, self.x, (False, True, False))
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
        """Inputs and output gradients times the bases of their factors, n s A^2 + c n s G^2; then as `gradients`."""
        if self.shared:
            width, outputs = self.patches.shape[1], self.rows.shape[1] // self.c
            torch.ones(width, width) @ self.patches
            torch.ones(outputs, outputs) @ self.rows.unflatten(1, (self.c, -1))
        else:
            self.x @ torch.ones(self.x.shape[1], self.x.shape[1])
            self.g @ torch.ones(self.g.shape[1], self.g.shape[1])
        self.gradients()

    def form_gradients(self) -> None:
        """Per-example gradients where positions are shared; elsewhere nobody needs them."""
        if self.shared:
            self.gradients()

    def kernel_rows(self) -> list[Tensor]:
        """The rows whose products with each other make the kernel: per-example gradients, or output gradients and inputs."""
        return [torch.randn(len(self.g), self.weight.numel())] if self.shared else [self.g, self.x]


@dataclass
class BareProduct:
    """One product of two activations, as random tensors of the shapes that m examples have.

    Attributes:
        x: Left operand.
        y: Right operand.
        c: The number of output directions.
    """

    x: Tensor
    y: Tensor
    c: int
    wanted: bool = False

    def __post_init__(self) -> None:
        self.g = torch.randn(self.c, *self.apply().shape)

    def apply(self) -> Tensor:
        """The product."""
        return self.x @ self.y

    def backward(self) -> None:
        """The derivatives with respect to both operands for all directions."""
        self.g @ self.y.mT
        self.x.mT @ self.g

    def tangent(self) -> None:
        """How it changes with both operands."""
        self.apply()
        self.apply()


class Products(TorchFunctionMode):
    """Notes the operands of matrix products that are no parameters.

    Attributes:
        seen: Pairs of operands.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("matmul", "__matmul__", "bmm") and args[0].ndim > 2 and args[1].ndim > 2:
            self.seen.append((args[0].detach(), args[1].detach()))
        return func(*args, **(kwargs or {}))


def bare_layers(problem: Problem, m: int, c: int, factored: bool = False) -> list[Bare | BareProduct]:
    """The layers and products of a problem with tensors of the shapes that they see for m examples.

    Args:
        problem: The model and its inputs.
        m: How many of them.
        c: The number of output directions.
        factored: Whether the operation is about the modules that have Kronecker factors, and about all else not.
    """
    seen: list[tuple[nn.Module, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0].detach())))
        for module in problem.model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) or type(module).__name__ == "Conv1D"
    ]
    with torch.no_grad(), Products() as products:
        problem.model(problem.inputs[:m])
    for handle in handles:
        handle.remove()
    wanted = [not factored or isinstance(module, problem.kronecker) for module, _ in seen]
    start = wanted.index(True)
    layers = [
        Bare(module, x, c, i <= start or x.data_ptr() == seen[start][1].data_ptr(), wanted[i])
        for i, (module, x) in enumerate(seen)
    ]
    return [*layers, *(BareProduct(x, y, c) for x, y in products.seen)]
