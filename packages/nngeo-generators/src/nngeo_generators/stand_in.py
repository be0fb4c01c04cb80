"""Stand-ins: bare parameters of containers, once for each example.

A class token or a position embedding belongs to no layer that could be read off a call. For the duration of a forward pass
it is replaced by n copies, one for each example, and the derivative with respect to the copies is per example.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.layers.rule import Call
from nngeo_generators.plan import Use
from nngeo_generators.rules.generic import GenericRule

__all__ = ["StandInRule", "copies", "replaced", "try_stand_ins"]

MOST_AXES = 3
"""Axes (positions, pixels) that may lie between the examples and a parameter's own."""


class StandInRule(GenericRule):
    """Reads the Jacobian off the derivatives with respect to the copies.

    Args:
        axes: How many axes of length one go between the examples and a parameter's own axes, where its first is not one
            that broadcasts over the examples already.
    """

    name = "stand-in"
    way = "one copy for each example"

    def __init__(self, axes: int) -> None:
        super().__init__(subtree=False)
        self.axes = axes

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor | tuple[Tensor, ...], names: tuple[str, ...]
    ) -> LayerJacobian:
        """The gradients of the copies, side by side."""
        gradients = (output_gradients,) if isinstance(output_gradients, Tensor) else output_gradients
        return DenseJacobian(torch.cat([gradient.unsqueeze(2).flatten(2) for gradient in gradients], 2))


def copies(use: Use, n: int) -> dict[str, Tensor]:
    """n copies of each parameter of a use, as leaves: shape (n, ...)."""
    axes = use.rule.axes if isinstance(use.rule, StandInRule) else 0
    made: dict[str, Tensor] = {}
    for name in use.names:
        parameter = use.module.get_parameter(name).detach()
        broadcasts = parameter.ndim > 0 and parameter.shape[0] == 1
        shape = parameter.shape[1:] if broadcasts else (*(1,) * axes, *parameter.shape)
        made[name] = parameter.reshape(shape).expand(n, *shape).clone().requires_grad_()
    return made


@contextmanager
def replaced(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Some of a module's own parameters replaced by tensors; put back on leaving, also by an exception."""
    own = {name: module._parameters[name] for name in tensors}
    try:
        module._parameters.update(tensors)  # type: ignore[arg-type]  # any tensor does for a forward pass
        yield
    finally:
        module._parameters.update(own)


def try_stand_ins(plan: Sequence[Use], outputs: Tensor, forward: Callable[[Sequence[Use]], Any]) -> tuple[Use, ...]:
    """The plan with stand-ins for the bare parameters of containers, where the model's outputs stay the same.

    Args:
        plan: The uses of the layers' parameters.
        outputs: What the model returns without stand-ins.
        forward: Runs the model by a plan, and returns the capture.
    """
    for k, use in enumerate(plan):
        bare = type(use.rule) is GenericRule and not use.rule.claims_subtree and any(use.module.children())
        for axes in range(MOST_AXES if bare else 0):
            tried = (*plan[:k], replace(use, rule=StandInRule(axes)), *plan[k + 1 :])
            if _same_outputs(tried, use.layer_id, outputs, forward):
                plan = tried
                break
    return tuple(plan)


def _same_outputs(plan: Sequence[Use], layer_id: str, outputs: Tensor, forward: Callable[[Sequence[Use]], Any]) -> bool:
    try:
        capture = forward(plan)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the model cannot take copies in the parameter's place, for whatever reason
        return False
    if layer_id in capture.refused:
        return False
    found = capture.outputs
    tolerance = torch.finfo(outputs.dtype).eps ** 0.5
    return bool(found.shape == outputs.shape and (found - outputs).norm() <= tolerance * outputs.norm())
