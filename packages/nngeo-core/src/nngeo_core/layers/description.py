"""Layer collections as JSON, from which they are rebuilt without the model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from nngeo_core.errors import StorageError, UnsupportedOperationError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.layer import Layer

__all__ = ["describe_layers", "identify_layers", "rebuild_layers"]


def describe_layers(layers: LayerCollection) -> list[dict[str, Any]]:
    """Id, type of record, its fields and parameter names of each layer, in order.

    Raises:
        UnsupportedOperationError: A record cannot be rebuilt from such a description; names its class.

    Example:
        >>> from nngeo_core.layers.layer import LinearLayer
        >>> describe_layers(LayerCollection({"fc": LinearLayer(3, 2)}))[0]["fields"]
        {'in_features': 3, 'out_features': 2, 'bias': True}
    """
    found = []
    for layer_id, layer in layers.items():
        known: dict[str, Any] = {}
        if is_dataclass(layer):
            known = {field.name: getattr(layer, field.name) for field in fields(layer)}
        entry: dict[str, Any] = {"id": layer_id, "record": _name(type(layer)), "fields": known}
        entry["parameters"] = list(layers.parameter_names[layer_id])
        if not _is_plain(known) or _rebuilt(entry) != layer:
            raise UnsupportedOperationError(
                f"layer '{layer_id}' cannot be written to a file: its record {layer!r} is not made again by its fields. Make "
                f"{_name(type(layer))} a frozen dataclass with fields of numbers, strings and tuples, or use ParameterLayer"
            )
        found.append(entry)
    return found


def identify_layers(layers: LayerCollection) -> list[list[str]]:
    """Id, record and parameter names of each layer in print, which equal collections have in common.

    Example:
        >>> from nngeo_core.layers.layer import ParameterLayer
        >>> identify_layers(LayerCollection({"norm": ParameterLayer((("weight", (3,)),))}))
        [['norm', "ParameterLayer(shapes=(('weight', (3,)),))", 'norm.weight']]
    """
    return [[layer_id, repr(layer), *layers.parameter_names[layer_id]] for layer_id, layer in layers.items()]


def rebuild_layers(description: Sequence[Mapping[str, Any]]) -> LayerCollection:
    """The collection that `describe_layers` described.

    Raises:
        StorageError: A record's class is not known here; names it.

    Example:
        >>> from nngeo_core.layers.layer import LinearLayer
        >>> layers = LayerCollection({"fc": LinearLayer(3, 2)})
        >>> rebuild_layers(describe_layers(layers)) == layers
        True
    """
    layers = LayerCollection()
    for entry in description:
        layers.add_layer(entry["id"], _rebuilt(entry), entry["parameters"])
    return layers


def _rebuilt(entry: Mapping[str, Any]) -> Layer:
    """The record; its class is looked for among those that are imported, since a file must not make anything run."""
    name = entry["record"]
    for kind in _subclasses(Layer):  # type: ignore[type-abstract]
        if _name(kind) == name:
            return kind(**{field: _tupled(value) for field, value in entry["fields"].items()})
    raise StorageError(
        f"layer '{entry['id']}' is described by a {name}, which no imported module has: import the module that defines it, "
        "or install the plugin that does"
    )


def _subclasses(kind: type[Layer]) -> Iterator[type[Layer]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _name(kind: type[Layer]) -> str:
    """nngeo's own classes may move; those of others are told apart by their modules."""
    return kind.__name__ if kind.__module__ == Layer.__module__ else f"{kind.__module__}.{kind.__qualname__}"


def _is_plain(value: Any) -> bool:
    """Whether JSON keeps it, but for tuples, which are made again."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if type(value) is tuple else type(value) in (int, float, str, bool, type(None))


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value
