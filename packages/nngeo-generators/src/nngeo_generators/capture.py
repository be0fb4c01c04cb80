"""Capture: every call of the planned modules in one forward pass, and the gradient edge of what it returned."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import NonFiniteError, UnsupportedLayerError
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.jacobians.sum import add
from nngeo_core.layers.rule import Call
from nngeo_generators.chunking import Footprint, measure
from nngeo_generators.plan import Use

__all__ = ["Capture", "CapturedCall", "listening"]


@dataclass(frozen=True)
class CapturedCall:
    """One call of one module.

    Attributes:
        module: The module.
        call: Its arguments.
        edge: Where the derivative with respect to its output arrives in the graph.
        shape: The output's shape.
        dtype: The output's dtype.
        device: The output's device.
        read: The tensors that the call read, with their versions at the time.
    """

    module: nn.Module
    call: Call
    edge: GradientEdge
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    read: tuple[tuple[Tensor, int], ...]


class Capture:
    """The calls of one forward pass over n examples, and its outputs with their graph.

    Attributes:
        n: Number of examples.
        calls: In the order in which the modules were called.
        outputs: The model's outputs, once the forward pass is over.
    """

    def __init__(self, plan: Sequence[Use], n: int) -> None:
        self.uses: dict[nn.Module, list[Use]] = {}
        for use in plan:
            self.uses.setdefault(use.module, []).append(use)
        self.n = n
        self.calls: list[CapturedCall] = []
        self.outputs = torch.empty(0)

    def record(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Note a call; returns the output to go on with, or None for the output as it is.

        A view is replaced by a clone, since an in-place operation on it would orphan its edge; an output without graph
        gets a root. Under the model's own `no_grad` there is nothing to note: the derivative is zero.
        """
        if not isinstance(output, Tensor):
            raise UnsupportedLayerError(
                f"'{path}' ({type(module).__name__}) returned {type(output).__name__}, not one tensor"
            )
        if output.shape[:1] != (self.n,):
            raise UnsupportedLayerError(
                f"'{path}' ({type(module).__name__}) returned shape {tuple(output.shape)} for {self.n} examples; the first "
                "dimension inside the model must be that of the examples. Move it there, or leave this layer out of the "
                "layer collection"
            )
        if not torch.is_grad_enabled():
            return None
        changed = None
        if not output.requires_grad:
            changed = output = output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        elif output._is_view():
            changed = output = output.clone()
        read = [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)]
        call = Call(tuple(map(_detached, args)), {key: _detached(part) for key, part in kwargs.items()}, path)
        versions = tuple((part.detach(), part._version) for part in read if not part.is_inference())
        edge = get_gradient_edge(output)
        self.calls.append(CapturedCall(module, call, edge, output.shape, output.dtype, output.device, versions))
        return changed

    def footprint(self) -> Footprint:
        """Bytes of inputs and of one direction's output gradient, from a pass over one example."""
        sizes: list[tuple[int, int]] = []
        for captured in self.calls:
            gradient = torch.zeros(1, *captured.shape, dtype=result_dtype(captured.dtype), device=captured.device)
            for use in self.uses[captured.module]:
                stored = use.rule.jacobian(use.module, captured.call, gradient, use.names).nbytes
                sizes.append((max(0, stored - gradient.nbytes), gradient.nbytes))
        return measure(sizes)

    def check_unchanged(self) -> None:
        """Raise if the model changed a captured input in place after a module had read it.

        Raises:
            UnsupportedLayerError: Naming the module.
        """
        for captured in self.calls:
            if any(tensor._version != version for tensor, version in captured.read):
                raise UnsupportedLayerError(
                    f"the input of '{captured.call.path}' was changed in place after the layer had read it, so its derivative "
                    "is lost; use the out-of-place form of that operation"
                )

    def layer_jacobians(self, directions: Tensor, keep_graph: bool) -> dict[str, LayerJacobian]:
        """The Jacobian of each layer that was called.

        Args:
            directions: Output gradients, shape (c, n, ...).
            keep_graph: Whether more directions will follow.

        Raises:
            NonFiniteError: An output gradient has a NaN or an infinity; names the module.
        """
        gradients = self._output_gradients(directions, keep_graph)
        self._check_finite(gradients)
        jacobians: dict[str, LayerJacobian] = {}
        for captured, gradient in zip(self.calls, gradients, strict=True):
            for use in self.uses[captured.module]:
                part = _in_layer(use, use.rule.jacobian(use.module, captured.call, gradient, use.names))
                before = jacobians.get(use.layer_id)
                jacobians[use.layer_id] = part if before is None else add(before, part)
        return jacobians

    def _output_gradients(self, directions: Tensor, keep_graph: bool) -> list[Tensor]:
        """For each call, the derivative of every direction with respect to its output, shape (c, *output)."""
        if not self.calls or not self.outputs.requires_grad:
            return [_no_gradient(call, len(directions)) for call in self.calls]
        batched = len(directions) > 1
        found = torch.autograd.grad(
            self.outputs,
            [call.edge for call in self.calls],
            directions if batched else directions[0],
            retain_graph=keep_graph,
            is_grads_batched=batched,
            allow_unused=True,
        )
        return [
            _no_gradient(call, len(directions))
            if gradient is None
            else (gradient if batched else gradient.unsqueeze(0)).to(result_dtype(gradient.dtype))
            for call, gradient in zip(self.calls, found, strict=True)
        ]

    def _check_finite(self, gradients: Sequence[Tensor]) -> None:
        """One pass over the bytes: a sum is finite only if all its terms are."""
        if gradients and not torch.stack([gradient.sum() for gradient in gradients]).isfinite().all():
            for captured, gradient in zip(self.calls, gradients, strict=True):
                if not gradient.isfinite().all():
                    raise NonFiniteError(
                        f"the derivative with respect to the output of '{captured.call.path}' has a NaN or an infinity"
                    )


def _no_gradient(call: CapturedCall, directions: int) -> Tensor:
    return torch.zeros(directions, *call.shape, dtype=result_dtype(call.dtype), device=call.device)


def _detached(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    detached = argument.detach()
    return detached.to(result_dtype(detached.dtype)) if detached.is_floating_point() else detached


def _in_layer(use: Use, jacobian: LayerJacobian) -> LayerJacobian:
    """The Jacobian with respect to all parameters of the layer, zero for those that this module does not use."""
    c, n, numel = jacobian.shape
    if numel == use.layer_numel:
        return jacobian
    parts = jacobian.to_dense()
    whole = parts.new_zeros(c, n, use.layer_numel)
    start = 0
    for place in use.places:
        width = place.stop - place.start
        whole[:, :, place] = parts[:, :, start : start + width]
        start += width
    return DenseJacobian(whole)


@contextmanager
def listening(capture: Capture) -> Iterator[None]:
    """Hooks on the planned modules, before any of the user's own; removed on leaving, also by an exception."""
    handles = []
    try:
        for module, uses in capture.uses.items():
            hook = _hook(uses[0].path, capture)
            handles.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(path: str, capture: Capture) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return capture.record(path, module, args, kwargs, output)

    return hook
