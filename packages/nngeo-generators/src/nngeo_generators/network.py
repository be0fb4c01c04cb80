"""Calling modules with other tensors in place of their parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from nngeo_core.sweep.examples import Batch, map_tensors

__all__ = ["Network", "call_with"]


def call_with(
    module: nn.Module, replacements: Mapping[str, Tensor], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> Any:
    """What a module returns with some of its parameters and buffers replaced, wherever they are used.

    Each place of a tensor is named once: `functional_call` itself would name those of a module that is registered
    twice twice, and then put a replacement back as the original.

    Args:
        module: The module; it is as before afterwards.
        replacements: By (first) name in `module.named_parameters()`, or in `module.named_buffers()`.
        arguments: Positional arguments of the call.
        keywords: Keyword arguments of the call.
    """
    names: dict[Tensor, str] = {}
    swapped = {}
    # parameters first: one that is registered as a buffer too keeps its name
    for kind in ("_parameters", "_buffers"):
        for path, part in module.named_modules():
            for local, held in getattr(part, kind).items():
                place = f"{path}.{local}" if path else local
                if held is not None and names.setdefault(held, place) in replacements:
                    swapped[place] = replacements[names[held]]
    return functional_call(module, swapped, tuple(arguments), dict(keywords), tie_weights=False)


class Network(nn.Module):
    """A model and the function of its outputs as one module.

    Args:
        model: The user's model.
        outputs: Maps a batch to the outputs, calling the model.
    """

    def __init__(self, model: nn.Module, outputs: Callable[[Batch], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, batch: Batch) -> Tensor:
        """The outputs of a batch."""
        return self.outputs(batch)

    def with_parameters(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The outputs with the named parameters, or buffers, of the model replaced."""
        swapped = {f"model.{name}": tensor for name, tensor in parameters.items()}
        outputs: Tensor = call_with(self, swapped, (batch,), {})
        return outputs

    def in_float64(self, batch: Batch) -> Tensor:
        """The outputs with parameters, buffers and the batch in float64."""
        held = (*self.model.named_parameters(), *self.model.named_buffers())
        wide = {name: _in_float64(tensor.detach()) for name, tensor in held}
        return self.with_parameters(wide, map_tensors(batch, _in_float64))


def _in_float64(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
