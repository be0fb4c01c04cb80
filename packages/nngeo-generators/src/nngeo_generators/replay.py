"""Replaying one call of a module, example by example, to differentiate it with respect to parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.layers.rule import Call
from nngeo_generators.network import call_with

__all__ = ["Replay", "floating_tensors"]


def floating_tensors(result: Any) -> list[Tensor]:
    """The tensors in what a module returned that may carry a derivative, in a fixed order."""
    return [part for part in tree_flatten(result)[0] if isinstance(part, Tensor) and part.is_floating_point()]


class Replay:
    """A call of a module, ready to be run again on each of its n examples alone.

    Args:
        module: The module.
        call: What it was called with. A tensor is cut along its first axis of length n; one without is shared.
        parameters: What to differentiate with respect to, by name local to the module.
    """

    def __init__(self, module: nn.Module, call: Call, parameters: Mapping[str, Tensor]) -> None:
        self.module = module
        self.call = call
        self.parameters = dict(parameters)
        self.leaves, self.structure = tree_flatten((call.arguments, call.keywords))
        self.axes = [_example_axis(leaf, call.n_examples) for leaf in self.leaves]

    def jacobian(self, gradients: Sequence[Tensor]) -> Tensor:
        """The derivative of each direction of each example with respect to the parameters, shape (c, n, d).

        Args:
            gradients: For each floating-point tensor that the call returned, the derivative of c directions with respect
                to it, shape (c, *its shape).

        Raises:
            UnsupportedLayerError: What the module returns has no axis of the examples.
        """
        try:
            axes = self._output_axes(gradients)
            found = self._vectorized(gradients, axes)
            return self._looped(gradients, axes) if found is None else found
        except UnsupportedLayerError:
            raise
        except Exception as error:  # whatever the module raises when it meets one example alone
            raise UnsupportedLayerError(
                f"'{self.call.path}' ({type(self.module).__name__}) cannot be run again on one example alone: {error}"
            ) from error

    def _run(self, parameters: Mapping[str, Tensor], leaves: Sequence[Any]) -> list[Tensor]:
        arguments, keywords = tree_unflatten(list(leaves), self.structure)
        return floating_tensors(call_with(self.module, parameters, arguments, keywords))

    def _example(self, i: int) -> list[Any]:
        """The arguments of example i alone."""
        pairs = zip(self.leaves, self.axes, strict=True)
        return [leaf if axis is None else leaf.narrow(axis, i, 1) for leaf, axis in pairs]

    def _output_axes(self, gradients: Sequence[Tensor]) -> list[int]:
        """Where the examples are in what the module returns: the axis of length n that has length 1 for one example."""
        with torch.no_grad():
            alone = self._run(self.parameters, self._example(0))
        shapes = [gradient.shape[1:] for gradient in gradients]
        found = [
            _common_axis(one.shape, shape, self.call.n_examples) for one, shape in zip(alone, shapes, strict=False)
        ]
        axes = [axis for axis in found if axis is not None]
        if len(axes) != len(gradients):
            raise UnsupportedLayerError(
                f"'{self.call.path}' ({type(self.module).__name__}) returns shapes {[tuple(shape) for shape in shapes]} for "
                f"{self.call.n_examples} examples and {[tuple(one.shape) for one in alone]} for one of them alone; expected "
                "the same with one axis of the examples"
            )
        return axes

    def _vectorized(self, gradients: Sequence[Tensor], axes: Sequence[int]) -> Tensor | None:
        """All examples and directions at once; None where vmap cannot trace the module, as it refuses in many ways."""
        cut = [(k, axis) for k, axis in enumerate(self.axes) if axis is not None]

        def one_example(examples: Sequence[Tensor], cotangents: Sequence[Tensor]) -> dict[str, Tensor]:
            filled = list(self.leaves)
            for (k, axis), example in zip(cut, examples, strict=True):
                filled[k] = example.unsqueeze(axis)
            pull_back = vjp(lambda parameters: tuple(self._run(parameters, filled)), self.parameters)[1]
            singles = tuple(part.unsqueeze(axis + 1) for part, axis in zip(cotangents, axes, strict=True))
            pulled: dict[str, Tensor] = vmap(lambda u: pull_back(u)[0])(singles)
            return pulled

        in_axes = ([axis for _, axis in cut], [axis + 1 for axis in axes])
        try:
            found = vmap(one_example, in_dims=in_axes)([self.leaves[k] for k, _ in cut], list(gradients))
        except Exception:
            return None
        shapes = {name: (self.call.n_examples, len(gradients[0]), *p.shape) for name, p in self.parameters.items()}
        if any(found[name].shape != shape for name, shape in shapes.items()):  # vmap of prelu returns too much
            return None
        return torch.cat([found[name].flatten(2) for name in self.parameters], 2).transpose(0, 1)

    def _looped(self, gradients: Sequence[Tensor], axes: Sequence[int]) -> Tensor:
        """One example after the other."""
        rows = [
            self._one(i, [part.narrow(axis + 1, i, 1) for part, axis in zip(gradients, axes, strict=True)])
            for i in range(self.call.n_examples)
        ]
        return torch.stack(rows, 1)

    def _one(self, i: int, cotangents: Sequence[Tensor]) -> Tensor:
        """The derivatives of c directions of example i, shape (c, d)."""
        wanted = {name: parameter.detach().requires_grad_() for name, parameter in self.parameters.items()}
        with torch.enable_grad():
            outputs = self._run(wanted, self._example(i))
        pairs = [(o, u.to(o.dtype)) for o, u in zip(outputs, cotangents, strict=True) if o.requires_grad]
        c = len(cotangents[0])
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if pairs:
            results, u = zip(*pairs, strict=True)
            u = u if c > 1 else tuple(part[0] for part in u)
            found = torch.autograd.grad(results, list(wanted.values()), u, is_grads_batched=c > 1, allow_unused=True)
        parts = [
            parameter.new_zeros(c, parameter.numel()) if gradient is None else gradient.reshape(c, -1)
            for parameter, gradient in zip(self.parameters.values(), found, strict=True)
        ]
        return torch.cat(parts, 1)


def _example_axis(leaf: Any, n: int) -> int | None:
    """The axis of the examples in an argument: the first one of length n; None if it is shared."""
    return next((k for k, length in enumerate(leaf.shape) if length == n), None) if isinstance(leaf, Tensor) else None


def _common_axis(one: torch.Size, all_of_them: torch.Size, n: int) -> int | None:
    """The axis in which two shapes differ as those of one example and of n do."""
    if len(one) != len(all_of_them):
        return None
    return next((k for k, (a, b) in enumerate(zip(one, all_of_them, strict=True)) if a == 1 and b == n), None)
