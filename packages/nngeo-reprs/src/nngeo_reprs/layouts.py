"""Layouts as tensors, for the states of accumulators."""

from collections.abc import Mapping
from dataclasses import astuple

import torch
from torch import Tensor

from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.parallel.group import Group

__all__ = ["common_layouts", "layouts_from_state", "layouts_to_state"]

_PREFIX = "layouts."


def layouts_to_state(layouts: Mapping[str, KroneckerLayout]) -> dict[str, Tensor]:
    """Entries of a state, one for each layer.

    Example:
        >>> layouts_to_state({"fc": KroneckerLayout(groups=1, outputs=2, inputs=3, has_bias=True)})
        {'layouts.fc': tensor([1, 2, 3, 1, 1])}
    """
    return {f"{_PREFIX}{layer_id}": torch.tensor(astuple(layout), device="cpu") for layer_id, layout in layouts.items()}


def common_layouts(layouts: Mapping[str, KroneckerLayout], group: Group, what: str) -> dict[str, KroneckerLayout]:
    """Those of all processes, each layer's once."""
    found: dict[str, KroneckerLayout] = {}
    for theirs in group.gather_values({layer_id: astuple(layout) for layer_id, layout in layouts.items()}, what):
        found = {layer_id: KroneckerLayout(*numbers) for layer_id, numbers in theirs.items()} | found
    return found


def layouts_from_state(state: Mapping[str, Tensor]) -> dict[str, KroneckerLayout]:
    """The layouts that are among the entries of a state."""
    layouts = {}
    for key, numbers in state.items():
        if key.startswith(_PREFIX):
            groups, outputs, inputs, has_bias, leading_inputs = numbers.tolist()
            layout = KroneckerLayout(groups, outputs, inputs, bool(has_bias), leading_inputs)
            layouts[key.removeprefix(_PREFIX)] = layout
    return layouts
