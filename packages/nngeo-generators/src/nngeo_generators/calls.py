"""Captured calls: what is kept of a module's call, and where the examples are in it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils._pytree import tree_leaves

from nngeo_core.conventions import result_dtype
from nngeo_core.layers.rule import Call
from nngeo_generators.axes import example_axes, example_axis
from nngeo_generators.plan import Use
from nngeo_generators.rules.generic import GenericRule

__all__ = ["CapturedCall", "by_module", "located"]


@dataclass(frozen=True)
class CapturedCall:
    """One call of one module, or the copies that stand in for bare parameters.

    Attributes:
        uses: What is to be read off it.
        call: Its arguments.
        edges: Where the derivatives with respect to the tensors that it returned arrive in the graph.
        returned: Those tensors' shapes, dtypes and devices.
        read: The tensors that the call read, with their versions at the time.
    """

    uses: tuple[Use, ...]
    call: Call
    edges: tuple[GradientEdge, ...]
    returned: tuple[tuple[torch.Size, torch.dtype, torch.device], ...]
    read: tuple[tuple[Tensor, int], ...]

    def gradients(self, found: Iterable[Tensor | None], directions: int) -> tuple[Tensor, ...]:
        """What autograd found for each tensor, at least in float32; zeros where it found nothing."""
        return tuple(
            torch.zeros(directions, *shape, dtype=result_dtype(dtype), device=device)
            if gradient is None
            else gradient.to(result_dtype(dtype))
            for gradient, (shape, dtype, device) in zip(found, self.returned, strict=True)
        )

    @property
    def replayed(self) -> bool:
        """Whether the module will be run again on these arguments."""
        return any(type(use.rule) is GenericRule for use in self.uses)

    def example_axes(self, place: int) -> list[int]:
        """Where the examples may be in one of the tensors that were returned."""
        if self.call.output_axes is not None:
            return [self.call.output_axes[place]]
        if all(use.rule.one_output for use in self.uses):
            return [0]
        return [k for k, length in enumerate(self.returned[place][0]) if length == self.call.n_examples]


def by_module(calls: Iterable[CapturedCall]) -> dict[nn.Module, list[CapturedCall]]:
    """The calls of each module, in order."""
    found: dict[nn.Module, list[CapturedCall]] = {}
    for captured in calls:
        found.setdefault(captured.uses[0].module, []).append(captured)
    return found


def located(calls: Sequence[CapturedCall], alone: Sequence[CapturedCall]) -> list[CapturedCall]:
    """A module's calls, which now know on which axis their examples are.

    Args:
        calls: Those of a pass over n > 1 examples.
        alone: Those of a pass over one.

    Raises:
        ValueError: The examples are not on one axis of the arguments, or not on one of what was returned.
    """
    if len(calls) != len(alone):
        raise ValueError(f"there are {len(calls)} for all examples and {len(alone)} for one of them alone")
    return [_located(captured, one) for captured, one in zip(calls, alone, strict=True)]


def _located(captured: CapturedCall, alone: CapturedCall) -> CapturedCall:
    arguments, ones = (tree_leaves((c.call.arguments, c.call.keywords)) for c in (captured, alone))
    shapes = zip([part[0] for part in alone.returned], [part[0] for part in captured.returned], strict=False)
    axes = tuple(axis for axis in (example_axis(*pair) for pair in shapes) if axis is not None)
    if len(axes) != len(captured.returned):
        raise ValueError("what is returned does not depend on the number of examples")
    call = replace(captured.call, argument_axes=example_axes(ones, arguments), output_axes=axes)
    return replace(captured, call=call)
