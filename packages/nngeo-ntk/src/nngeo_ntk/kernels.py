"""From examples to the numbers of a kernel: tile by tile, into one's own buffer or the caller's."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy
import torch
from torch import Tensor
from tqdm import tqdm

from nngeo_core.errors import ShapeError
from nngeo_core.jacobians.contraction import BLOCK_BYTES, GramMethod, Pairing, blocks
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.untouched import undisturbed
from nngeo_ntk.chunks import DEFAULT_MEMORY_BUDGET, Chunk, Source, pairs
from nngeo_ntk.contract import contraction
from nngeo_ntk.recorded import NO_OUTPUTS, Recorded

__all__ = ["Buffer", "METHODS", "compute_kernel", "compute_layer_kernels", "squared_norm"]

Buffer: TypeAlias = Tensor | numpy.ndarray[Any, Any]
"""Where a kernel may be written: a tensor, or an array such as a numpy memory map."""

METHODS: tuple[GramMethod, ...] = ("positions", "gradients", "products")

ROWS = 128
"""Rows of a tile at least: fewer make its products less efficient, more compute more of both symmetric halves."""

MIRRORED = 64
"""Columns of a mirrored tile that are copied together."""


def compute_kernel(
    generator: Generator,
    examples: Any,
    others: Any = None,
    pairing: Pairing = "all",
    method: GramMethod | None = None,
    out: Buffer | None = None,
    progress: bool = False,
) -> Tensor:
    """K = J J'^T, shape (c, n, c, m); its blocks of "equal" outputs, (c, n, m); or their average over outputs, (n, m).

    Args:
        generator: Differentiates the model, for the identity as likelihood.
        examples: One batch or a loader, read once: the rows.
        others: The same for the columns of a cross kernel; None for the rows' own.
        pairing: Which outputs meet: "all", "equal" ones, or equal ones "summed" and then averaged.
        method: Forces how layers are contracted (see `nngeo_core.jacobians.contraction.gram_costs`); None takes the cheapest
            order of each layer.
        out: Filled in place if given; of the kernel's shape, and of a dtype that loses no digits.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: There are no examples, or `method` is unknown.
        ShapeError: Examples have different numbers of outputs, or the buffer another shape.
        TypeError: The buffer's dtype would lose digits.
    """
    every = {"": tuple(generator.layer_collection)}
    return _compute(generator, examples, others, pairing, method, {"": out}, every, progress)[""]


def compute_layer_kernels(
    generator: Generator,
    examples: Any,
    others: Any = None,
    pairing: Pairing = "all",
    method: GramMethod | None = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """The kernel of each layer alone, by layer id, from one sweep; they add up to the kernel of all.

    Takes what `compute_kernel` takes.
    """
    each = {layer_id: (layer_id,) for layer_id in generator.layer_collection}
    return _compute(generator, examples, others, pairing, method, dict.fromkeys(each), each, progress)


def squared_norm(generator: Generator, examples: Any, others: Any = None) -> Tensor:
    """The sum of squares of all entries of K = J J'^T, of which none is stored; 0-dimensional.

    Takes what `compute_kernel` takes.
    """
    rows, columns = _sources(generator, examples, others, "all", None)
    layers, total = tuple(generator.layer_collection), torch.zeros((), device=generator.device)
    with undisturbed(generator.model, generator.device), torch.no_grad():
        for first, second in pairs(rows, columns, generator.memory_budget or DEFAULT_MEMORY_BUDGET):
            for _, _, tile in _tiles(first, second, layers, rows):
                once = len(tile) if first is second and columns is None else 0
                squares = torch.linalg.vector_norm(tile[:, :, :once]).square()
                rest = torch.linalg.vector_norm(tile[:, :, once:]).square()
                total = total + squares + (2 - (columns is not None)) * rest
    return total


def _compute(
    generator: Generator,
    examples: Any,
    others: Any,
    pairing: Pairing,
    method: GramMethod | None,
    out: Mapping[str, Buffer | None],
    groups: Mapping[str, tuple[str, ...]],
    progress: bool,
) -> dict[str, Tensor]:
    rows, columns = _sources(generator, examples, others, pairing, method)
    found: dict[str, Tensor] = {}
    with undisturbed(generator.model, generator.device), torch.no_grad():
        steps = pairs(rows, columns, generator.memory_budget or DEFAULT_MEMORY_BUDGET)
        for first, second in _shown(steps, rows, columns, progress):
            if not found:
                shape = _shape(first.outputs, len(rows.examples), len((columns or rows).examples), pairing)
                found = {name: _buffer(buffer, shape, first) for name, buffer in out.items()}
            for name, layers in groups.items():
                _write(found[name], (first, second), layers, rows, columns is None)
        if not found:
            raise ShapeError(NO_OUTPUTS)
        for kernel in found.values():
            if pairing == "summed":
                kernel /= first.outputs
    return found


def _sources(
    generator: Generator, examples: Any, others: Any, pairing: Pairing, method: GramMethod | None
) -> tuple[Source, Source | None]:
    if method is not None and method not in METHODS:
        raise ValueError(f"method is None (the cheapest) or one of {', '.join(map(repr, METHODS))}; got {method!r}")
    rows = Source(generator, Recorded.of(generator, examples), method, pairing)
    return rows, None if others is None else Source(generator, Recorded.of(generator, others), method, pairing)


def _shape(c: int, n: int, m: int, pairing: Pairing) -> tuple[int, ...]:
    return {"all": (c, n, c, m), "equal": (c, n, m), "summed": (n, m)}[pairing]


def _buffer(buffer: Buffer | None, shape: tuple[int, ...], chunk: Chunk) -> Tensor:
    """Where to write a kernel of a shape: the caller's buffer as a tensor, or a new one; zero where tiles are summed."""
    dtype, device = chunk.dtype, chunk.device
    if buffer is None:
        return _empty(shape, dtype, device).zero_() if len(shape) == 2 else _empty(shape, dtype, device)
    tensor = torch.from_numpy(buffer) if isinstance(buffer, numpy.ndarray) else buffer
    if not isinstance(tensor, Tensor):
        raise TypeError(f"out is a tensor or a numpy array (such as a memory map), got {type(buffer).__name__}")
    if tensor.shape != shape:
        raise ShapeError(
            f"the buffer has shape {tuple(tensor.shape)}, and the kernel has shape {shape}; give out=empty{shape}"
        )
    if torch.promote_types(tensor.dtype, dtype) != tensor.dtype:
        raise TypeError(
            f"the buffer is {tensor.dtype} and would lose digits of a kernel in {dtype}; give one in {dtype}"
        )
    tensor = tensor.detach()
    return tensor.zero_() if len(shape) == 2 else tensor


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as error:
        raise MemoryError(
            f"a kernel of shape {shape} takes {math.prod(shape) * dtype.itemsize / 2**30:.0f} GiB, and there is less; give out="
            " a numpy memory map, or take 'implicit', 'trace' or 'blockdiag'"
        ) from error


def _tiles(
    first: Chunk, second: Chunk, layers: tuple[str, ...], source: Source
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The tiles of a pair of chunks, with the global directions of their rows and columns; of equal ones, all in one.

    Where a chunk meets itself, rows meet columns of their own and later directions alone.
    """
    shared = [name for name in layers if name in first.layers and name in second.layers]
    meeting = [
        contraction(first.layers[k], second.layers[k], source.method, source.pairing, first.dtype) for k in shared
    ]
    n, m = (chunk.examples.stop - chunk.examples.start for chunk in (first, second))
    for rows, columns in _direction_blocks(first, second, n, m, source.pairing):
        c, k = rows.stop - rows.start, columns.stop - columns.start
        shape = {"all": (c, n, k, m), "equal": (c, n, m), "summed": (n, m)}[source.pairing]
        tile = torch.zeros(shape, dtype=first.dtype, device=first.device)
        for one in meeting:
            one.add_(tile, _within(rows, first), _within(columns, second), source.pairing)
        yield rows, columns, tile


def _direction_blocks(first: Chunk, second: Chunk, n: int, m: int, pairing: Pairing) -> Iterator[tuple[slice, slice]]:
    rows, columns = first.directions, second.directions
    if pairing != "all":
        common = slice(max(rows.start, columns.start), min(rows.stop, columns.stop))
        if common.start < common.stop:
            yield common, common
        return
    row_bytes = n * (columns.stop - columns.start) * m * first.dtype.itemsize
    most = max(1, min(BLOCK_BYTES // max(1, row_bytes), -(-ROWS // n)))
    for some in blocks(rows.stop - rows.start, 1, most):
        block = slice(rows.start + some.start, rows.start + some.stop)
        yield block, slice(block.start, columns.stop) if first is second else columns


def _within(directions: slice, chunk: Chunk) -> slice:
    return slice(directions.start - chunk.directions.start, directions.stop - chunk.directions.start)


def _write(out: Tensor, pair: tuple[Chunk, Chunk], layers: tuple[str, ...], source: Source, symmetric: bool) -> None:
    """Put the tiles of a pair of chunks in their places, and their mirror images in theirs."""
    first, second = pair
    n, m = first.examples, second.examples
    for rows, columns, tile in _tiles(first, second, layers, source):
        if first is second and symmetric:
            _symmetrize_(tile)
        if out.ndim == 2:  # summed over directions, which may come in several tiles
            out[n, m] += tile.to(out.device)
            if symmetric and first is not second:
                out[m, n] += tile.T.to(out.device)
            continue
        mirrored = ((columns, m, rows, n), (2, 3, 0, 1)) if out.ndim == 4 else ((rows, m, n), (0, 2, 1))
        if symmetric:
            _copy_mirrored(out[mirrored[0]], tile.permute(mirrored[1]).to(out.device))
        out[(rows, n, columns, m) if out.ndim == 4 else (rows, n, m)] = tile.to(out.device)


def _copy_mirrored(place: Tensor, mirrored: Tensor) -> None:
    """Copy in strips of the last axis, whose neighbours are far apart in memory: a long one would not stay in the cache."""
    for strip in blocks(place.shape[-1], 1, MIRRORED):
        place[..., strip] = mirrored[..., strip]


def _symmetrize_(tile: Tensor) -> None:
    """Make the part of a tile that holds both halves exactly symmetric."""
    own = tile[:, :, : len(tile)] if tile.ndim == 4 else tile
    own.copy_((own + (own.permute(2, 3, 0, 1) if tile.ndim == 4 else own.mT)) / 2)


def _shown(
    steps: Iterator[tuple[Chunk, Chunk]], rows: Source, columns: Source | None, progress: bool
) -> Iterator[tuple[Chunk, Chunk]]:
    """The pairs of chunks, with a progress bar that counts pairs of examples if one is wanted."""
    if not progress:
        yield from steps
        return
    n = len(rows.examples)
    with tqdm(total=n * len(columns.examples) if columns else n * n, desc="kernel", unit="pair") as bar:
        seen = 0.0
        for first, second in steps:
            yield first, second
            sizes = [
                (x.examples.stop - x.examples.start) * (x.directions.stop - x.directions.start) for x in (first, second)
            ]
            seen += sizes[0] * sizes[1] * (2 if columns is None and first is not second else 1) / first.outputs**2
            bar.update(int(seen) - bar.n)
