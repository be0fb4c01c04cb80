"""A call of a recurrent layer or cell, run again step by step from its captured arguments so that its projections show."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.layers.rule import Call
from nngeo_generators.backward import pull_back_each
from nngeo_generators.replay import floating_tensors

__all__ = ["RecurrentReplay", "endings"]

NAMES = ("weight_ih", "bias_ih", "weight_hh", "bias_hh", "weight_hr")
State = tuple[Tensor, ...]
"""The hidden state (n, H), and for an LSTM its cell state."""
Step = Callable[[Tensor, Tensor, State], State]
"""The state after a step, of the projected input, the projected hidden state and the state before."""


def endings(module: nn.Module) -> list[list[str]]:
    """For each layer, how the names of its parameters end, by direction.

    Example:
        >>> endings(nn.GRU(3, 2, bidirectional=True)), endings(nn.GRUCell(3, 2))
        ([['_l0', '_l0_reverse']], [['']])
    """
    if not isinstance(module, nn.RNNBase):
        return [[""]]
    ways = ("", "_reverse") if module.bidirectional else ("",)
    return [[f"_l{layer}{way}" for way in ways] for layer in range(module.num_layers)]


class RecurrentReplay:
    """What a call computed, with the graph between its projections.

    Args:
        module: A recurrent layer or cell.
        call: What it was called with.

    Attributes:
        inputs: What each weight multiplied at the T steps, in the order of time, by its name: shape (n, T, width).

    Raises:
        UnsupportedLayerError: The input is a packed sequence or has the examples elsewhere, or the module computed something
            else.
    """

    def __init__(self, module: nn.RNNBase | nn.RNNCellBase, call: Call) -> None:
        self.inputs: dict[str, Tensor] = {}
        self._projected: dict[str, tuple[Tensor, ...]] = {}
        self._pulled: tuple[object, dict[str, Tensor]] = (None, {})
        names = [name + ending for layer in endings(module) for ending in layer for name in NAMES]
        held = {name: getattr(module, name, None) for name in names}
        self._parameters = {name: _values(part) for name, part in held.items() if isinstance(part, Tensor)}
        self._step = _step(module)
        x, states = self._given(module, call)
        with torch.enable_grad():
            x, states = self._run(x, endings(module), states)
            if isinstance(module, nn.RNNBase):
                self._returned = [x if module.batch_first else x.transpose(0, 1), *states]
            else:
                self._returned = [state[0] for state in states]
        self._check_reproduced(module, call)

    def pull_back(self, gradients: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Derivatives of c directions with respect to every projection, by its weight's name: shape (c, n, T, out).

        They are kept until other gradients come, since each projection is asked for by itself.

        Args:
            gradients: Those with respect to what the module returned, shapes (c, *returned).
        """
        if self._pulled[0] is not gradients:
            given = (gradients,) if isinstance(gradients, Tensor) else gradients
            taps = [tap for steps in self._projected.values() for tap in steps]
            found: Iterator[Any] = iter(pull_back_each(self._returned, taps, given, keep_graph=True))
            pulled = {name: torch.stack([*islice(found, len(steps))], 2) for name, steps in self._projected.items()}
            self._pulled = (gradients, pulled)
        return self._pulled[1]

    def _given(self, module: nn.RNNBase | nn.RNNCellBase, call: Call) -> tuple[Tensor, State]:
        """The inputs (n, T, width), and the states before the first step, (layers and directions, n, H)."""
        x, cell = _values(call.tensor("input", 0)), isinstance(module, nn.RNNCellBase)
        axis = 0 if cell or module.batch_first else 1
        if x.ndim != 3 - cell or x.shape[axis] != call.n_examples:
            raise UnsupportedLayerError(
                f"'{call.path}' ({type(module).__name__}) was called on shape {tuple(x.shape)} for {call.n_examples} "
                f"examples; expected {3 - cell} axes, that of the examples in place {axis}"
            )
        x = x.unsqueeze(1) if cell else x.transpose(0, axis)
        hx = call.arguments[1] if len(call.arguments) > 1 else call.keywords.get("hx")
        if hx is not None:
            states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
            return x, tuple(_values(state).unsqueeze(0) if cell else _values(state) for state in states)
        count = sum(map(len, endings(module)))
        widths = [self._parameters[f"weight_hh{endings(module)[0][0]}"].shape[1]]
        widths += [module.hidden_size] * isinstance(module, nn.LSTM | nn.LSTMCell)
        return x, tuple(x.new_zeros(count, len(x), width) for width in widths)

    def _run(self, x: Tensor, layers: list[list[str]], states: State) -> tuple[Tensor, State]:
        """The last layer's outputs (n, T, width), and the states after the last step."""
        begin, after = zip(*states, strict=True), []
        for layer in layers:
            outputs = []
            for ending in layer:
                found, state = self._run_one(x, ending, next(begin))
                outputs.append(found)
                after.append(state)
            x = torch.cat(outputs, 2)
        return x, tuple(torch.stack(parts) for parts in zip(*after, strict=True))

    def _run_one(self, x: Tensor, ending: str, state: State) -> tuple[Tensor, State]:
        """One direction of one layer; a backward one takes the steps from the last to the first."""
        back = -1 if ending.endswith("_reverse") else 1
        given = self._project(x, f"ih{ending}").unbind(1)
        hidden, projected, cells, outputs = [], [], [], []
        for step in given[::back]:
            hidden.append(state[0])
            projected.append(self._project(state[0], f"hh{ending}"))
            state = self._step(step, projected[-1], state)
            cells.append(state[0])
            if f"weight_hr{ending}" in self._parameters:
                state = (self._project(state[0], f"hr{ending}"), *state[1:])
            outputs.append(state[0])
        self._note(f"weight_ih{ending}", x, given)
        self._note(f"weight_hh{ending}", torch.stack(hidden[::back], 1), projected[::back])
        if f"weight_hr{ending}" in self._parameters:
            self._note(f"weight_hr{ending}", torch.stack(cells[::back], 1), outputs[::back])
        return torch.stack(outputs[::back], 1), state

    def _project(self, x: Tensor, name: str) -> Tensor:
        """A tensor that autograd can be asked about, as x may have no graph."""
        projected = F.linear(x, self._parameters[f"weight_{name}"], self._parameters.get(f"bias_{name}"))
        return projected if projected.requires_grad else projected.requires_grad_()

    def _note(self, weight: str, inputs: Tensor, projected: tuple[Tensor, ...] | list[Tensor]) -> None:
        self.inputs[weight], self._projected[weight] = inputs.detach(), tuple(projected)

    def _check_reproduced(self, module: nn.Module, call: Call) -> None:
        """Raise unless the module itself returns the same."""
        with torch.no_grad():
            returned = floating_tensors(module.forward(*call.arguments, **call.keywords))
            expected = torch.cat([_values(part).flatten() for part in returned])
            error = (torch.cat([part.flatten() for part in self._returned]) - expected).norm()
        if not error <= torch.finfo(returned[0].dtype).eps ** 0.5 * expected.norm():
            raise UnsupportedLayerError(
                f"'{call.path}' ({type(module).__name__}), run again on its inputs, does not return what the rule for "
                f"recurrent layers computes (error {float(error):.1e} of {float(expected.norm()):.1e})"
            )


def _step(module: nn.Module) -> Step:
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return _lstm
    if isinstance(module, nn.GRU | nn.GRUCell):
        return _gru
    return partial(_elman, torch.relu if module.nonlinearity == "relu" else torch.tanh)


def _elman(activation: Callable[[Tensor], Tensor], x: Tensor, h: Tensor, state: State) -> State:
    return (activation(x + h),)


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    taken, kept, new, shown = (x + h).chunk(4, -1)
    cell = kept.sigmoid() * state[1] + taken.sigmoid() * new.tanh()
    return shown.sigmoid() * cell.tanh(), cell


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (x_reset, x_kept, x_new), (h_reset, h_kept, h_new) = x.chunk(3, -1), h.chunk(3, -1)
    new = (x_new + (x_reset + h_reset).sigmoid() * h_new).tanh()
    return (new + (x_kept + h_kept).sigmoid() * (state[0] - new),)


def _values(tensor: Tensor) -> Tensor:
    """Without its graph, in float32 or better."""
    return tensor.detach().to(result_dtype(tensor.dtype))
