"""A model and the function of its outputs as one module, called with other parameters in place of its own."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.func import functional_call

from nngeo_core.sweep.examples import Batch

__all__ = ["Network"]


class Network(nn.Module):
    """Calls `outputs` with some of the model's parameters swapped for the duration of the call.

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
        """The outputs with the named parameters of the model replaced, wherever they are used.

        Each place of a parameter is named once: `functional_call` itself would name those of a module that is registered
        twice twice, and then put a replacement back as the original.
        """
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        swapped = {
            f"model.{path}.{local}" if path else f"model.{local}": parameters[names[parameter]]
            for path, module in self.model.named_modules()
            for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if names[parameter] in parameters
        }
        result: Tensor = functional_call(self, swapped, (batch,), tie_weights=False)
        return result
