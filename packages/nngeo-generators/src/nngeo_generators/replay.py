"""Replaying one call of a module, example by example, to differentiate it with respect to parameters."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.layers.rule import Call
from nngeo_core.sweep.autocast import callers_autocast
from nngeo_generators.backward import pull_back_each
from nngeo_generators.network import call_with

__all__ = ["Replay", "floating_tensors"]


def floating_tensors(result: Any) -> list[Tensor]:
    """The tensors in what a module returned that may carry a derivative, in a fixed order."""
    return [part for part in tree_flatten(result)[0] if isinstance(part, Tensor) and part.is_floating_point()]


class Replay:
    """A call of a module, ready to be run again on each of its n examples alone.

    Args:
        module: The module.
        call: What it was called with, and where the examples are in it.
        parameters: What to differentiate with respect to, by name local to the module.
    """

    def __init__(self, module: nn.Module, call: Call, parameters: Mapping[str, Tensor]) -> None:
        self.module = module
        self.call = call
        self.parameters = dict(parameters)
        self.leaves, self.structure = tree_flatten((call.arguments, call.keywords))
        self.axes = call.argument_axes or tuple(_leading_axis(leaf, call.n_examples) for leaf in self.leaves)

    def jacobian(self, gradients: Sequence[Tensor]) -> Tensor:
        """The derivative of each direction of each example with respect to the parameters, shape (c, n, d).

        Args:
            gradients: For each floating-point tensor that the call returned, the derivative of c directions with respect
                to it, shape (c, *its shape).

        Raises:
            UnsupportedLayerError: The module cannot be run on one example alone.
        """
        n = self.call.n_examples
        if n == 0:
            return gradients[0].new_zeros(len(gradients[0]), 0, sum(p.numel() for p in self.parameters.values()))
        axes = self.call.output_axes or (0,) * len(gradients)
        try:
            if n == 1:
                return self._pulled_back(self.leaves, gradients).unsqueeze(1)
            with _quiet():
                found = self._vectorized(gradients, axes)
                if found is not None and self._is_right(found, gradients, axes):
                    return found
                return self._looped(gradients, axes)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the module raises when it meets one example alone
            raise UnsupportedLayerError(
                f"'{self.call.path}' ({type(self.module).__name__}) cannot be run again on one example alone: {error}"
            ) from error

    def _run(self, parameters: Mapping[str, Tensor], leaves: Sequence[Any]) -> list[Tensor]:
        arguments, keywords = tree_unflatten(list(leaves), self.structure)
        with callers_autocast(next(iter(self.parameters.values())).device):
            return floating_tensors(call_with(self.module, parameters, arguments, keywords))

    def _example(self, i: int) -> list[Any]:
        """The arguments of example i alone."""
        pairs = zip(self.leaves, self.axes, strict=True)
        return [leaf if axis is None else leaf.narrow(axis, i, 1) for leaf, axis in pairs]

    def _vectorized(self, gradients: Sequence[Tensor], axes: Sequence[int]) -> Tensor | None:
        """All examples and directions at once; None where vmap cannot trace the module, as it refuses in many ways."""
        cut = [(k, axis) for k, axis in enumerate(self.axes) if axis is not None]

        def one_example(examples: Sequence[Tensor], cotangents: Sequence[Tensor]) -> dict[str, Tensor]:
            filled = list(self.leaves)
            for (k, axis), example in zip(cut, examples, strict=True):
                filled[k] = example.unsqueeze(axis)
            found = vjp(lambda parameters: tuple(self._run(parameters, filled)), self.parameters)
            outputs, pull_back = found[0], found[1]
            triples = zip(cotangents, axes, outputs, strict=True)
            singles = tuple(part.unsqueeze(axis + 1).to(output.dtype) for part, axis, output in triples)
            pulled: dict[str, Tensor] = vmap(lambda u: pull_back(u)[0])(singles)
            return pulled

        in_axes = ([axis for _, axis in cut], [axis + 1 for axis in axes])
        try:
            found = vmap(one_example, in_dims=in_axes)([self.leaves[k] for k, _ in cut], list(gradients))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # vmap refuses what it cannot trace, in many ways; the loop takes anything
            return None
        shape = (self.call.n_examples, len(gradients[0]), -1)
        return torch.cat([part.reshape(shape) for part in found.values()], 2).transpose(0, 1)

    def _is_right(self, found: Tensor, gradients: Sequence[Tensor], axes: Sequence[int]) -> bool:
        """Whether the first example alone gives the same; vmap of some operations (prelu) is wrong for some shapes."""
        expected = self._pulled_back(self._example(0), _example_of(gradients, axes, 0))
        difference = (
            (found[:, 0] - expected).norm() if found.shape[2] == expected.shape[1] else expected.new_tensor(torch.inf)
        )
        return bool(difference <= torch.finfo(expected.dtype).eps ** 0.5 * expected.norm())

    def _looped(self, gradients: Sequence[Tensor], axes: Sequence[int]) -> Tensor:
        """One example after the other."""
        rows = [
            self._pulled_back(self._example(i), _example_of(gradients, axes, i)) for i in range(self.call.n_examples)
        ]
        return torch.stack(rows, 1)

    def _pulled_back(self, leaves: Sequence[Any], cotangents: Sequence[Tensor]) -> Tensor:
        """The derivatives of c directions of one example, shape (c, d)."""
        wanted = {name: parameter.detach().requires_grad_() for name, parameter in self.parameters.items()}
        with torch.enable_grad():
            outputs = self._run(wanted, leaves)
        pairs = [(o, u.to(o.dtype)) for o, u in zip(outputs, cotangents, strict=True) if o.requires_grad]
        c = len(cotangents[0])
        if not pairs:
            return cotangents[0].new_zeros(c, sum(parameter.numel() for parameter in wanted.values()))
        found = _pull_back([o for o, _ in pairs], list(wanted.values()), [u for _, u in pairs])
        parts = [
            parameter.new_zeros(c, parameter.numel()) if gradient is None else gradient.reshape(c, -1)
            for parameter, gradient in zip(wanted.values(), found, strict=True)
        ]
        return torch.cat(parts, 1)


def _pull_back(
    outputs: Sequence[Tensor], wanted: Sequence[Tensor], directions: Sequence[Tensor]
) -> list[Tensor | None]:
    try:
        return pull_back_each(outputs, wanted, directions, keep_graph=True)
    except RuntimeError:
        return pull_back_each(outputs, wanted, directions, batched=False)


def _example_of(gradients: Sequence[Tensor], axes: Sequence[int], i: int) -> list[Tensor]:
    """The directions of example i alone."""
    return [part.narrow(axis + 1, i, 1) for part, axis in zip(gradients, axes, strict=True)]


def _leading_axis(leaf: Any, n: int) -> int | None:
    """The examples are first, unless an argument is shared."""
    return 0 if isinstance(leaf, Tensor) and leaf.shape[:1] == (n,) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings about the speed of vmap."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        yield
