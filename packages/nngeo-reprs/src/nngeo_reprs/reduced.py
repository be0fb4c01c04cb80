"""What KFAC-reduce and EKFAC-reduce say of layers before any batch."""

from collections.abc import Mapping

from nngeo_core.layers.collection import LayerCollection

__all__ = ["without_tables"]


def without_tables(numbers: Mapping[str, int | None], layers: LayerCollection) -> dict[str, int | None]:
    """The numbers of all layers but those that look rows up, whose averaged inputs may have no factor to store."""
    kept = {}
    for layer_id, number in numbers.items():
        structure = layers.structure(layer_id)
        if structure is None or not structure.diagonal_inputs:
            kept[layer_id] = number
    return kept
