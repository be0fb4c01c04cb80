"""Capture: every call of the planned modules in one forward pass, and the gradient edges of what it returned."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, reduce
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import NonFiniteError, UnsupportedLayerError
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.jacobians.sum import add
from nngeo_core.layers.rule import Call
from nngeo_generators.backward import pull_back_each
from nngeo_generators.calls import CapturedCall, by_module, located
from nngeo_generators.chunking import Footprint, measure
from nngeo_generators.order import has_moved, may_move_rows, tagged
from nngeo_generators.plan import Use
from nngeo_generators.rules.generic import GenericRule
from nngeo_generators.stand_in import StandInRule, copies, replaced

__all__ = ["Capture", "listening"]


class Capture:
    """The calls of one forward pass over n examples, and its outputs with their graph.

    Attributes:
        n: Number of examples.
        batched: Whether several directions go backward at once.
        calls: In the order in which the modules were called.
        outputs: The model's outputs, once the forward pass is over.
        refused: Why the Jacobian of a layer cannot be read off its modules' calls, by layer id.
        altered: The layers of which the model was given something else than usual: more copies of what examples share.
    """

    def __init__(self, plan: Sequence[Use], n: int, batched: bool = True) -> None:
        self.uses: dict[nn.Module, list[Use]] = {}
        self.stand_ins = [use for use in plan if isinstance(use.rule, StandInRule)]
        for use in plan:
            if not isinstance(use.rule, StandInRule):
                self.uses.setdefault(use.module, []).append(use)
        self.n = n
        self.batched = batched
        self.calls: list[CapturedCall] = []
        self.outputs = torch.empty(0, device="cpu")
        self.refused: dict[str, str] = {}
        reason = "the model cannot take one copy of it for each example"
        self.altered = {use.layer_id: reason for use in self.stand_ins}

    def record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Note a call; returns the output to go on with, or None for the output as it is.

        A view is replaced by a clone, since an in-place operation on it would orphan its edge; a tensor without graph gets
        a root. Under the model's own `no_grad` there is nothing to note: the derivative is zero.
        """
        if not torch.is_grad_enabled():
            return None
        uses = self.uses[module]
        parts, structure = ([output], None) if isinstance(output, Tensor) else tree_flatten(output)
        places = [k for k, part in enumerate(parts) if isinstance(part, Tensor) and part.is_floating_point()]
        objection = self._objection(uses, output, bool(places))
        if objection:
            self._refuse(uses, f"'{uses[0].path}' ({type(module).__name__}) {objection}")
            return None
        arguments, keywords = args, kwargs
        if self.n > 1 and isinstance(output, Tensor) and output.shape[0] == 1 and uses[0].rule.one_output:
            parts = [output.expand(self.n, *output.shape[1:])]
            arguments, keywords = tree_map(self._expanded, (args, kwargs))
            for use in uses:
                self.altered[use.layer_id] = (
                    f"'{use.path}' ({type(module).__name__}) returned one row for {self.n} examples"
                )
        connected = {k: _connected(parts[k], len(places) > 1) for k in places}
        self.note(uses, arguments, keywords, list(connected.values()))
        if structure is None:
            return connected[0]
        return tree_unflatten([connected.get(k, part) for k, part in enumerate(parts)], structure)

    def _objection(self, uses: Sequence[Use], output: Any, has_tensors: bool) -> str:
        """What keeps the call from being read, if anything."""
        if not has_tensors:
            return f"returned {type(output).__name__}, which holds no tensor that can be found"
        if not any(use.rule.one_output for use in uses):
            return ""
        if not isinstance(output, Tensor):
            return f"returned {type(output).__name__}, not one tensor"
        if output.shape[:1] not in ((self.n,), (1,)):
            return (
                f"returned shape {tuple(output.shape)} for {self.n} examples; the first dimension inside the model must be "
                "that of the examples"
            )
        return ""

    def _refuse(self, uses: Sequence[Use], reason: str) -> None:
        for use in uses:
            self.refused.setdefault(use.layer_id, reason)

    def _expanded(self, argument: Any) -> Any:
        """An argument that all examples share, once for each."""
        shared = isinstance(argument, Tensor) and argument.ndim > 0 and argument.shape[0] == 1
        return argument.expand(self.n, *argument.shape[1:]) if shared else argument

    def note(self, uses: Sequence[Use], args: Any, kwargs: Any, returned: Sequence[Tensor]) -> None:
        """Keep a call with the gradient edges of the tensors that it returned."""
        leaves, arguments, keywords = _detached(args, kwargs)
        self.calls.append(
            CapturedCall(
                tuple(uses),
                Call(tuple(arguments), keywords, uses[0].path, self.n),
                tuple(get_gradient_edge(part) for part in returned),
                tuple((part.shape, part.dtype, part.device) for part in returned),
                tuple((leaf, leaf._version) for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_inference()),
            )
        )

    def check_unchanged(self) -> None:
        """Refuse the layers whose captured input the model changed in place after they had read it."""
        for captured in self.calls:
            if any(tensor._version != version for tensor, version in captured.read):
                self._refuse(
                    captured.uses,
                    f"the input of '{captured.call.path}' was changed in place after the layer had read it, so its "
                    "derivative is lost; use the out-of-place form of that operation",
                )

    def needs_axes(self) -> bool:
        """Whether some call will be run again on its examples one by one, which must be found in its arguments."""
        return self.n > 1 and any(captured.replayed for captured in self.calls)

    def find_axes(self, alone: "Capture") -> None:
        """Find where the examples are in the calls to be run again, by comparing with a pass over one example.

        A layer is refused if that does not show it: other calls are made, or another axis depends on the number of examples.
        """
        ones = by_module(captured for captured in alone.calls if captured.replayed)
        found = [captured for captured in self.calls if not captured.replayed]
        for module, calls in by_module(captured for captured in self.calls if captured.replayed).items():
            try:
                found += located(calls, ones.get(module, []))
            except ValueError as error:
                place = f"'{calls[0].call.path}' ({type(module).__name__})"
                self._refuse(calls[0].uses, f"the examples cannot be found in the calls of {place}: {error}")
        self.calls = found

    def check_order(self) -> None:
        """Refuse the layers whose calls have the examples in another order, in a model that moves rows by what the data say."""
        if self.n < 2 or self.refused or not self.calls or not may_move_rows(self.outputs):
            return
        edges = [edge for captured in self.calls for edge in captured.edges]
        try:
            stream = iter(pull_back_each([self.outputs], edges, [tagged(self.outputs)], keep_graph=True, batched=False))
        except RuntimeError:  # it will be raised again where the derivatives are asked for
            return
        for captured in self.calls:
            for place, found in enumerate(islice(stream, len(captured.edges))):
                if found is not None and has_moved(found, captured.example_axes(place)):
                    self._refuse(
                        captured.uses, f"the examples are in another order in the calls of '{captured.call.path}'"
                    )

    def raise_refused(self) -> None:
        """Raise if a layer was refused.

        Raises:
            UnsupportedLayerError: With the reason.
        """
        for layer_id, reason in self.refused.items():
            raise UnsupportedLayerError(
                f"layer '{layer_id}': {reason}. Mend the model, or leave this layer out of the layer collection"
            )

    @cached_property
    def footprint(self) -> Footprint:
        """Bytes of inputs and of one direction's gradients, from a pass over one example.

        What a rule finds by running a module again is there twice, in parts and put together, beside the gradients given.
        """
        sizes, beside = list[tuple[int, int]](), 0
        for captured in self.calls:
            gradients = captured.gradients([None] * len(captured.edges), 1)
            given = sum(part.nbytes for part in gradients)
            for use in captured.uses:
                inputs, found = self._sizes(use, captured, gradients)
                sizes.append((inputs, max(found, given)))
                beside += 0 if use.rule.one_output else found + given
        return measure(sizes, beside)

    def _sizes(self, use: Use, captured: CapturedCall, gradients: tuple[Tensor, ...]) -> tuple[int, int]:
        """Bytes of a Jacobian that do not grow with the directions, and of those that do; a dense one needs no run."""
        if isinstance(use.rule, GenericRule):
            return 0, sum(place.stop - place.start for place in use.places) * gradients[0].itemsize
        jacobian = self._jacobian(use, captured, gradients)
        return jacobian.input_nbytes, jacobian.nbytes - jacobian.input_nbytes

    def layer_jacobians(
        self, directions: Tensor, keep_graph: bool, mask: Tensor | None = None
    ) -> dict[str, LayerJacobian]:
        """The Jacobian of each layer that was called, all of the dtype with the most digits: that of the sums.

        Args:
            directions: Output gradients, shape (c, n, ...).
            keep_graph: Whether more directions will follow.
            mask: Which of T positions of each example count, shape (n, T), for the layers that share T positions.

        Raises:
            NonFiniteError: An output gradient has a NaN or an infinity; names the module.
            UnsupportedLayerError: A rule refuses a call.
        """
        gradients = self._output_gradients(directions, keep_graph)
        self._check_finite(gradients)
        jacobians: dict[str, LayerJacobian] = {}
        for captured, parts in zip(self.calls, gradients, strict=True):
            for use in captured.uses:
                jacobian = _in_layer(use, self._jacobian(use, captured, parts))
                jacobian = jacobian if mask is None else jacobian.with_mask(mask)
                before = jacobians.get(use.layer_id)
                jacobians[use.layer_id] = jacobian if before is None else add(before, jacobian)
        dtypes = (jacobian.dtype for jacobian in jacobians.values())
        dtype = reduce(torch.promote_types, dtypes, result_dtype(self.outputs.dtype))
        return {name: part if part.dtype == dtype else part.to(dtype) for name, part in jacobians.items()}

    def _jacobian(self, use: Use, captured: CapturedCall, gradients: tuple[Tensor, ...]) -> LayerJacobian:
        given = gradients[0] if len(gradients) == 1 else gradients
        try:
            return use.rule.jacobian(use.module, captured.call, given, use.names)
        except UnsupportedLayerError as error:
            self._refuse([use], str(error))
            raise

    def _output_gradients(self, directions: Tensor, keep_graph: bool) -> list[tuple[Tensor, ...]]:
        """For each call, the derivatives of every direction with respect to what it returned, shapes (c, *returned)."""
        edges = [edge for captured in self.calls for edge in captured.edges]
        found: Sequence[Tensor | None] = [None] * len(edges)
        if edges and self.outputs.requires_grad:
            found = pull_back_each([self.outputs], edges, [directions], keep_graph, self.batched)
        stream = iter(found)
        return [
            captured.gradients(list(islice(stream, len(captured.edges))), len(directions)) for captured in self.calls
        ]

    def _check_finite(self, gradients: Sequence[tuple[Tensor, ...]]) -> None:
        """One pass over the bytes: a sum is finite only if all its terms are."""
        sums = [part.sum() for parts in gradients for part in parts]
        if sums and not torch.stack(sums).isfinite().all():
            for captured, parts in zip(self.calls, gradients, strict=True):
                if not all(part.isfinite().all() for part in parts):
                    raise NonFiniteError(
                        f"the derivative with respect to the output of '{captured.call.path}' has a NaN or an infinity"
                    )


def _connected(part: Tensor, one_of_several: bool) -> Tensor:
    """The tensor with a gradient edge of its own that no in-place operation can orphan.

    One of several is cloned, since others may be computed from it, whose derivatives would arrive at its edge too.
    """
    if not part.requires_grad:
        return part + torch.zeros((), dtype=part.dtype, device=part.device, requires_grad=True)
    return part.clone() if one_of_several or part._is_view() else part


def _detached(args: Any, kwargs: Any) -> tuple[list[Any], Any, Any]:
    """All that a call was given, one by one and in place, without its graph; most calls take one tensor."""
    if len(args) == 1 and isinstance(args[0], Tensor) and not kwargs:
        alone = [args[0].detach()]
        return alone, alone, {}
    given, structure = tree_flatten((args, kwargs))
    leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in given]
    return leaves, *tree_unflatten(leaves, structure)


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
    """Hooks on the planned modules, before any of the user's own, and stand-ins for bare parameters.

    The ways of torch that avoid hooks are switched off. All is as before on leaving, also by an exception.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        for module in capture.uses:
            handle = module.register_forward_hook(_hook(capture), prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        for use in capture.stand_ins:
            tensors = copies(use, capture.n)
            stack.enter_context(replaced(use.module, tensors))
            capture.note((use,), (), {}, list(tensors.values()))
        yield


def _hook(capture: Capture) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return capture.record(module, args, kwargs, output)

    return hook
