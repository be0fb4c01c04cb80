"""Interleaving: where the layers of some collections lie in one that has them all."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from nngeo_core.errors import LayerCollectionMismatchError
from nngeo_core.layers.collection import LayerCollection

__all__ = ["Interleaving"]


class Interleaving:
    """Cuts vectors about all layers into vectors about parts of them, and puts those together again.

    The parts' layers may alternate, and each part has them in an order of its own.

    Args:
        whole: All layers.
        parts: The parts, which have each layer once.

    Raises:
        LayerCollectionMismatchError: A part has layers that are not in the whole, two parts have the same one, or one is
            missing.

    Example:
        >>> from nngeo_core import LinearLayer
        >>> whole = LayerCollection({name: LinearLayer(1, 1, bias=False) for name in "abc"})
        >>> places = Interleaving(whole, [whole.restricted("ac"), whole.restricted("b")])
        >>> places.split(torch.tensor([1.0, 2.0, 3.0]))
        [tensor([1., 3.]), tensor([2.])]
    """

    def __init__(self, whole: LayerCollection, parts: Sequence[LayerCollection]) -> None:
        for part in parts:
            whole.check_contains(part)
        times = Counter(layer_id for part in parts for layer_id in part)
        twice, missing = [name for name in times if times[name] > 1], [name for name in whole if name not in times]
        if twice or missing:
            raise LayerCollectionMismatchError(
                f"the parts of a matrix have each of its layers once; got {twice} twice and {missing} not at all"
            )
        self._d = whole.numel()
        slices = whole.slices()
        self._places = [[slices[layer_id] for layer_id in part] for part in parts]
        origin = {layer_id: (k, place) for k, part in enumerate(parts) for layer_id, place in part.slices().items()}
        self._origins = [origin[layer_id] for layer_id in whole]

    def split(self, v: Tensor) -> list[Tensor]:
        """The coordinates (..., d_k) of each part, of those (..., d) of all."""
        return [torch.cat([v[..., place] for place in places], -1) for places in self._places]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The coordinates (..., d) of all, of those (..., d_k) of each part."""
        return torch.cat([parts[k][..., place] for k, place in self._origins], -1)

    def join_blocks(self, blocks: Sequence[Tensor]) -> Tensor:
        """The matrix (d, d) with one block (d_k, d_k) for each part, and zeros between parts."""
        whole = blocks[0].new_zeros(self._d, self._d)
        for number, block in enumerate(blocks):
            places = self.places(number).to(block.device)
            whole[places.unsqueeze(1), places] = block
        return whole

    def join_rows(self, number: int, rows: Tensor) -> Tensor:
        """Rows (m, d) with the coordinates (m, d_k) of one part, and zeros elsewhere."""
        whole = rows.new_zeros(len(rows), self._d)
        whole[:, self.places(number).to(rows.device)] = rows
        return whole

    def places(self, number: int) -> Tensor:
        """Where the coordinates of one part lie among all, shape (d_k,)."""
        return torch.cat([torch.arange(place.start, place.stop, device="cpu") for place in self._places[number]])
