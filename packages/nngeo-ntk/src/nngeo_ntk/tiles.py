"""Tiles: J J'^T of two chunks in parts that stay in the cache, of a chunk with itself one symmetric half."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from nngeo_core.jacobians.contraction import GramMethod, Pairing
from nngeo_core.jacobians.gram import lies_as_matrix
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_ntk.contract import Kept, contraction
from nngeo_ntk.place import Place
from nngeo_ntk.shelf import Chunk

__all__ = ["Tile", "tiles"]

ROWS = 256
"""Rows of a tile: fewer make more tiles, each with calls of its own; more compute more of both symmetric halves."""

TILE_BYTES = 2 * 2**20
"""Bytes of a tile, unless one row of examples takes more: what is added up and mirrored should not leave the cache."""


@dataclass(frozen=True)
class Tile:
    """Some entries of J J'^T.

    Attributes:
        rows: Which directions and examples of the first chunk.
        columns: Those of the second.
        values: Shape (c, n, k, m); of "equal" directions (c, n, m); of those "summed" (n, m).
        own: Which of its directions and examples are those of its rows too, in a tile of a chunk with itself.
        stays: Whether the values were computed where they will lie.
    """

    rows: Place
    columns: Place
    values: Tensor
    own: Place | None
    stays: bool


def tiles(
    first: Chunk,
    second: Chunk,
    layers: tuple[str, ...],
    method: GramMethod | None,
    pairing: Pairing,
    room: Callable[[Place, Place], Tensor] | None = None,
) -> Iterator[Tile]:
    """All tiles of two chunks; where a chunk meets itself, rows meet themselves and what comes after them alone.

    Args:
        first: J.
        second: J'.
        layers: The layers whose parameters count.
        method: How they are to be contracted; None for the cheapest way of each.
        pairing: Which directions meet.
        room: Where the values for some rows and columns will lie, in the chunks' dtype and on their device: they are computed
            there if that is a matrix in memory.
    """
    shared = [name for name in layers if name in first.layers and name in second.layers]
    kept = [(first.layers[name], second.layers[name]) for name in shared]
    by_directions = pairing == "all" and all(_has_one_position(side) for pair in kept for side in pair)
    meeting = [contraction(*pair, method, pairing, first.dtype, not by_directions) for pair in kept]
    places = _equal_places if pairing != "all" else _places_by_directions if by_directions else _places_by_examples
    for rows, columns in places(first, second, pairing):
        there = room(rows, columns) if room is not None and by_directions else None
        stays = there is not None and lies_as_matrix(there)
        values = there if there is not None and stays else _empty(rows, columns, pairing, by_directions, first)
        if meeting:
            meeting[0].write_(values, rows, columns, pairing)
        else:
            values.zero_()
        for one in meeting[1:]:
            one.add_(values, rows, columns, pairing)
        yield Tile(rows, columns, values, _own(rows, columns) if first is second else None, stays)


def _has_one_position(kept: Kept) -> bool:
    """Whether its gradients lie with the directions first, and its inputs meet those of other examples once for all of them."""
    return isinstance(kept, KroneckerJacobian) and kept.positions == 1


def _empty(rows: Place, columns: Place, pairing: Pairing, by_directions: bool, chunk: Chunk) -> Tensor:
    """A tile to be written to, in memory with its directions first or with its examples first."""
    (c, n), (k, m) = (tuple(part.stop - part.start for part in place) for place in (rows, columns))
    if pairing == "all" and not by_directions:
        return torch.empty(n, c, m, k, dtype=chunk.dtype, device=chunk.device).permute(1, 0, 3, 2)
    shape = {"all": (c, n, k, m), "equal": (c, n, m), "summed": (n, m)}[pairing]
    return torch.empty(shape, dtype=chunk.dtype, device=chunk.device)


def _sizes(chunk: Chunk) -> tuple[int, int]:
    return chunk.directions.stop - chunk.directions.start, chunk.examples.stop - chunk.examples.start


def _places_by_directions(first: Chunk, second: Chunk, pairing: Pairing) -> Iterator[tuple[Place, Place]]:
    """One direction of many examples, or several of few, with all directions from there on."""
    (c, n), (k, m), every = _sizes(first), _sizes(second), slice(0, _sizes(second)[1])
    for some in _steps(0, c, ROWS // max(1, n)):
        for examples in _steps(0, n, n if n < 2 * ROWS else ROWS):
            rows, start = (some, examples), 0
            if first is second and examples != every:  # then it is one direction
                for partners in _steps(examples.start, n, max(_most(ROWS, 1, first), ROWS)):
                    yield rows, (some, partners)
            if first is second:
                start = some.start if examples == every else some.stop
            height = (some.stop - some.start) * (examples.stop - examples.start)
            for others in _steps(start, k, max(_most(height, m, first), some.stop - some.start)):
                yield rows, (others, every)


def _places_by_examples(first: Chunk, second: Chunk, pairing: Pairing) -> Iterator[tuple[Place, Place]]:
    """All directions of some examples, with those of all examples from there on."""
    (c, n), (k, m) = _sizes(first), _sizes(second)
    for examples in _steps(0, n, -(-ROWS // max(1, c))):
        size = examples.stop - examples.start
        for partners in _steps(
            examples.start if first is second else 0, m, max(_most(size * max(1, c), k, first), size)
        ):
            yield (slice(0, c), examples), (slice(0, k), partners)


def _equal_places(first: Chunk, second: Chunk, pairing: Pairing) -> Iterator[tuple[Place, Place]]:
    """The directions of both, of some examples with all examples from there on."""
    start = max(first.directions.start, second.directions.start)
    stop = min(first.directions.stop, second.directions.stop)
    if start >= stop:
        return
    rows, columns = (slice(start - x.directions.start, stop - x.directions.start) for x in (first, second))
    c, (_, n), (_, m) = 1 if pairing == "summed" else stop - start, _sizes(first), _sizes(second)
    size = max(1, min(ROWS, isqrt(_most(1, c, first))))
    for examples in _steps(0, n, size):
        for partners in _steps(examples.start if first is second else 0, m, max(_most(size, c, first), size)):
            yield (rows, examples), (columns, partners)


def _most(height: int, width: int, chunk: Chunk) -> int:
    """How many times `width` columns a tile of that height may have."""
    return max(1, TILE_BYTES // max(1, height * width * chunk.dtype.itemsize))


def _steps(start: int, stop: int, size: int) -> Iterator[slice]:
    for k in range(start, stop, max(1, size)):
        yield slice(k, min(k + max(1, size), stop))


def _own(rows: Place, columns: Place) -> Place | None:
    """Where the rows are among the columns, if they are."""
    if any(row.start < column.start or row.stop > column.stop for row, column in zip(rows, columns, strict=True)):
        return None
    some, examples = (
        slice(row.start - column.start, row.stop - column.start) for row, column in zip(rows, columns, strict=True)
    )
    return some, examples
