"""What `print(layer_collection)` shows: layers, their rules, and what each representation will store for them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nngeo_core.errors import PluginError
from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers.layer import Layer
from nngeo_core.plugins import registry

__all__ = ["Origin", "aligned", "layer_table"]

WIDTH = 120
"""Columns of text that a table takes, as far as its texts can be shortened."""
LEAST = {"layer": 48, "kind": 24, "rule": 16}
"""To how many characters each of them is shortened at most."""

Cost = Mapping[str, int | None] | int | None
"""What `PMat.stored_numbers` returned; None if the representation does not say."""


@dataclass(frozen=True)
class Origin:
    """What is known of a layer that was found in a model.

    Attributes:
        module_type: Name of the type of the first module that uses its parameters.
        rules: Names of the rules of all modules that do.
        structure: What its Jacobian will be, if the rules say so.
    """

    module_type: str
    rules: str
    structure: Structure | None


def layer_table(layers: Mapping[str, Layer], origins: Mapping[str, Origin]) -> str:
    """A line for each layer, one for the totals, and what the numbers mean.

    Args:
        layers: The layers, in the form in which representations tell their costs of them: a `LayerCollection`.
        origins: Those of the layers that were found in a model.
    """
    costs = _costs(layers)
    texts = [("layer", "kind", "rule")]
    for layer_id, layer in layers.items():
        origin = origins.get(layer_id)
        texts.append((layer_id or "''", _kind(layer, origin), "-" if origin is None else origin.rules))
    numbers = [["parameters", *(str(layer.numel()) for layer in layers.values())]]
    numbers += [[name, *(_cell(cost, layer_id) for layer_id in layers)] for name, cost in costs.items()]
    totals = [str(sum(layer.numel() for layer in layers.values())), *map(_total, costs.values(), [layers] * len(costs))]
    for column, total in zip(numbers, totals, strict=True):
        column.append(total)
    texts = _fitted([*texts, ("total", "", "")], WIDTH - sum(max(map(len, column)) + 2 for column in numbers) - 4)
    rows = [(a, b, p, c, *n) for (a, b, c), p, *n in zip(texts, *numbers, strict=True)]
    return "\n".join([*aligned(rows, right={2, *range(4, 4 + len(costs))}), *_legend(rows)])


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines with the cells of equal columns beneath each other, two blanks between them.

    Args:
        rows: Cells, as many in each row.
        right: The columns that end beneath each other, as numbers do.

    Example:
        >>> aligned([("layer", "size"), ("head", "8")], right={1})
        ['layer  size', 'head      8']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _kind(layer: Layer, origin: Origin | None) -> str:
    name = type(layer).__name__.removesuffix("Layer") if origin is None else origin.module_type
    return f"{'' if name == 'Parameter' else name} {layer.summary()}".strip()


def _costs(layers: Mapping[str, Layer]) -> dict[str, Cost]:
    """What each registered representation says that it will store."""
    try:
        names = registry.names("representations")
    except PluginError:  # a plugin prints while plugins are being loaded
        return {}
    return {name: _cost(name, layers) for name in names}


def _cost(name: str, layers: Mapping[str, Layer]) -> Cost:
    try:
        found = registry.representation(name).stored_numbers(layers)
        numbers = found.values() if isinstance(found, Mapping) else [found]
        known = (bool(numbers) or not layers) and all(isinstance(number, int | None) for number in numbers)
        return found if known else None
    except Exception:  # whatever is wrong with a plugin, its owner finds out when the representation is used
        return None


def _cell(cost: Cost, layer_id: str) -> str:
    if not isinstance(cost, Mapping):
        return ""
    number = cost.get(layer_id)
    return _text(number) if number is not None else "-" if layer_id in cost else "?"


def _total(cost: Cost, layers: Collection[str]) -> str:
    """Of the layers that the representation can hold."""
    if not isinstance(cost, Mapping):
        return "?" if cost is None else _text(cost)
    if any(layer_id not in cost for layer_id in layers):
        return "?"
    held = [number for number in (cost[layer_id] for layer_id in layers) if number is not None]
    return _text(sum(held)) if held or not layers else "-"


def _text(number: int) -> str:
    return str(number) if number < 10**10 else f"{number:.2e}"


def _legend(rows: Sequence[Sequence[str]]) -> list[str]:
    """What the columns and signs mean, as far as there are any."""
    if len(rows[0]) == 4:
        return []
    cells = {cell for row in rows[1:] for cell in row[4:]}
    signs = {"-": "-: it cannot hold the layer, which the total leaves out", "?": "?: it does not say"}
    meanings = [meaning for sign, meaning in signs.items() if sign in cells]
    return ["; ".join(["right of the rule: how many numbers each representation stores", *meanings])]


def _fitted(texts: Sequence[tuple[str, str, str]], width: int) -> list[tuple[str, str, str]]:
    """Layer, kind and rule shortened until they fit: first the kind, then the rule, then the layer at its start."""
    columns = {name: [row[k] for row in texts] for k, name in enumerate(LEAST)}
    for name in ("kind", "rule", "layer"):
        excess = sum(max(map(len, column)) for column in columns.values()) - width
        longest = max(LEAST[name], max(map(len, columns[name])) - max(0, excess))
        columns[name] = [_cut(text, longest, at_start=name == "layer") for text in columns[name]]
    return list(zip(*columns.values(), strict=True))


def _cut(text: str, width: int, at_start: bool) -> str:
    """A text of at most this width, dots for what is left out."""
    if len(text) <= width:
        return text
    return f"...{text[len(text) - width + 3 :]}" if at_start else f"{text[: width - 3]}..."
