"""Matching: where in a model the parameters of a layer collection are."""

from collections.abc import Iterator, Mapping

from torch import nn

from nngeo_core.errors import LayerCollectionMismatchError
from nngeo_core.layers.layer import Layer

__all__ = ["find_module", "match_parameters"]


def match_parameters(
    model: nn.Module, layers: Mapping[str, Layer], names: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Triples (layer id, parameter name, parameter of the model), in flat order.

    Args:
        model: The model.
        layers: Layers by id.
        names: Names of each layer's parameters in `model.named_parameters()`, by layer id.

    Raises:
        LayerCollectionMismatchError: If the model lacks a parameter, or has it in another shape.
    """
    parameters = dict(model.named_parameters())
    for layer_id, layer in layers.items():
        for name, shape in zip(names[layer_id], layer.parameter_shapes().values(), strict=True):
            if name not in parameters:
                raise LayerCollectionMismatchError(
                    f"the model has no parameter '{name}' of layer '{layer_id}'; a tied parameter goes by its first "
                    "name in model.named_parameters(). LayerCollection.from_model(model) describes this model"
                )
            found = tuple(parameters[name].shape)
            if found != shape:
                raise LayerCollectionMismatchError(
                    f"parameter '{name}' has shape {found} in the model and {shape} in layer '{layer_id}' ({layer})"
                )
            yield layer_id, name, parameters[name]


def find_module(model: nn.Module, parameters: set[nn.Parameter]) -> nn.Module:
    """The first module that owns all these parameters itself, else the deepest one whose subtree does.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        >>> find_module(model, {model[1].weight})
        Linear(in_features=2, out_features=1, bias=True)
    """
    for module in model.modules():
        if parameters <= set(module.parameters(recurse=False)):
            return module
    return [module for module in model.modules() if parameters <= set(module.parameters())][-1]
