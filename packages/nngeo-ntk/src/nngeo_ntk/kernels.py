"""From examples to the numbers of a kernel: tile by tile, into one's own buffer or the caller's."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from nngeo_core.errors import NonFiniteError, ShapeError
from nngeo_core.jacobians.contraction import GramMethod, Pairing, blocks
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.untouched import undisturbed
from nngeo_ntk.buffers import Buffer, empty_kernel
from nngeo_ntk.chunks import DEFAULT_MEMORY_BUDGET, Source, pairs
from nngeo_ntk.place import Place, within
from nngeo_ntk.recorded import NO_OUTPUTS, Recorded
from nngeo_ntk.shelf import Chunk
from nngeo_ntk.tiles import Tile, tiles

__all__ = ["METHODS", "compute_kernel", "compute_layer_kernels", "kernel_norm"]

METHODS: tuple[GramMethod, ...] = ("positions", "gradients", "products")

TURNED = {4: (2, 3, 0, 1), 3: (0, 2, 1), 2: (1, 0)}
"""The order of the axes of a mirror image, by how many there are."""

STRIP = 64
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
        ValueError: There are no examples, `method` is unknown, or the buffer cannot be written to.
        ShapeError: Examples have different numbers of outputs, or the buffer another shape.
        TypeError: The buffer's dtype would lose digits.
        NonFiniteError: An entry overflows.
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


def kernel_norm(generator: Generator, examples: Any, others: Any = None) -> Tensor:
    """The Frobenius norm of K = J J'^T, of which no more than a tile is stored; 0-dimensional.

    Takes what `compute_kernel` takes.
    """
    rows, columns = _sources(generator, examples, others, "all", None)
    layers, total = tuple(generator.layer_collection), torch.zeros((), device=generator.device)
    with undisturbed(generator.model, generator.device), torch.no_grad():
        for first, second in pairs(rows, columns, generator.memory_budget or DEFAULT_MEMORY_BUDGET):
            for tile in tiles(first, second, layers, None, "all"):
                if columns is not None:
                    total = torch.hypot(total, euclidean_norm(tile.values))
                    continue
                _, beyond = _beyond_own(tile.columns, tile.values, tile.own)
                total = torch.hypot(total, 2**0.5 * euclidean_norm(beyond))
                if tile.own is not None:
                    total = torch.hypot(total, euclidean_norm(_own_part(tile.values, tile.own)))
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
    sums: dict[str, Tensor] = {}
    with undisturbed(generator.model, generator.device), torch.no_grad():
        steps = pairs(rows, columns, generator.memory_budget or DEFAULT_MEMORY_BUDGET)
        for first, second in _shown(steps, rows, columns, progress):
            if not found:
                shape = _shape(first.outputs, len(rows.examples), len((columns or rows).examples), pairing)
                found = {name: empty_kernel(one, shape, first.dtype, first.device) for name, one in out.items()}
                for kernel in found.values() if pairing == "summed" else ():
                    kernel.zero_()  # tiles of several directions are added
                sums = {name: torch.zeros((), dtype=first.dtype, device=first.device) for name in out}
            for name, layers in groups.items():
                sums[name] += _write(found[name], (first, second), layers, rows, columns is None)
        if not found:
            raise ShapeError(NO_OUTPUTS)
        for name, kernel in found.items():
            if pairing == "summed":
                kernel /= first.outputs
            if (pairing == "summed" or not sums[name].isfinite()) and not all_finite(kernel):
                raise NonFiniteError(
                    "the kernel has NaN or infinite entries, and the Jacobians have none: a product of theirs overflows; "
                    "compute it in float64"
                )
    return found


def _sources(
    generator: Generator, examples: Any, others: Any, pairing: Pairing, method: GramMethod | None
) -> tuple[Source, Source | None]:
    if method is not None and method not in METHODS:
        raise ValueError(f"method is None (the cheapest) or one of {', '.join(map(repr, METHODS))}; got {method!r}")
    first = Recorded.of(generator, examples)
    if others is None:
        return Source(generator, first, method, pairing), None
    second = Recorded.of(generator, others)
    return Source(generator, first, method, pairing, len(second)), Source(
        generator, second, method, pairing, len(first)
    )


def _shape(c: int, n: int, m: int, pairing: Pairing) -> tuple[int, ...]:
    return {"all": (c, n, c, m), "equal": (c, n, m), "summed": (n, m)}[pairing]


def _write(out: Tensor, pair: tuple[Chunk, Chunk], layers: tuple[str, ...], source: Source, symmetric: bool) -> Tensor:
    """Put the tiles of a pair of chunks in their places, and their mirror images in theirs; returns the sum of their entries.

    It is finite where all entries are, unless it overflows; a kernel on disk need not be read again to know.
    """
    first, second = pair
    total = torch.zeros((), dtype=first.dtype, device=first.device)

    def room(rows: Place, columns: Place) -> Tensor:
        return out[_entries(out.ndim, _of_all(first, rows), _of_all(second, columns))]

    at_once = out.ndim == 4 and out.dtype == first.dtype and out.device == first.device
    for tile in tiles(first, second, layers, source.method, source.pairing, room if at_once else None):
        if symmetric and tile.own is not None:
            _symmetrize_(tile.values, tile.own)
        total += tile.values.sum()
        if out.ndim == 2:  # summed over directions, which may come in several tiles
            room(tile.rows, tile.columns).add_(tile.values.to(out.device))
        elif not tile.stays:
            room(tile.rows, tile.columns).copy_(tile.values)
        if symmetric:
            _mirror(out, _of_all(first, tile.rows), _of_all(second, tile.columns), tile)
    return total


def _mirror(out: Tensor, rows: Place, columns: Place, tile: Tile) -> None:
    """Put what a tile holds beyond its own part, which is its own mirror image, on the other side of the diagonal."""
    columns, values = _beyond_own(columns, tile.values, tile.own)
    mirrored, values = out[_entries(out.ndim, columns, rows)], values.permute(TURNED[out.ndim]).to(out.device)
    if out.ndim == 2:
        mirrored += values
    else:
        _copy_mirrored(mirrored, values)


def _of_all(chunk: Chunk, place: Place) -> Place:
    """A place in a chunk as one among all directions and examples."""
    return within(chunk.directions, place[0]), within(chunk.examples, place[1])


def _entries(ndim: int, rows: Place, columns: Place) -> tuple[slice, ...]:
    """Where rows and columns meet in a kernel of so many axes."""
    (some, n), (others, m) = rows, columns
    return {4: (some, n, others, m), 3: (some, n, m), 2: (n, m)}[ndim]


def _beyond_own(columns: Place, values: Tensor, own: Place | None) -> tuple[Place, Tensor]:
    """What a tile holds beyond its own part: it has more directions, or more examples, and never both."""
    if own is None:
        return columns, values
    (others, m), (some, examples) = columns, own
    if values.ndim == 4 and some.stop < values.shape[2]:
        return (slice(others.start + some.stop, others.stop), m), values[:, :, some.stop :]
    return (others, slice(m.start + examples.stop, m.stop)), values[..., examples.stop :]


def _copy_mirrored(place: Tensor, mirrored: Tensor) -> None:
    """Copy in strips of the last axis, whose neighbours are far apart in memory: a long one would not stay in the cache."""
    for strip in blocks(place.shape[-1], 1, STRIP):
        place[..., strip] = mirrored[..., strip]


def _own_part(values: Tensor, own: Place) -> Tensor:
    return values[:, :, own[0], own[1]] if values.ndim == 4 else values[..., own[1]]


def _symmetrize_(values: Tensor, own: Place) -> None:
    """Make the part of a tile that holds both halves exactly symmetric; its image is copied before it is written to."""
    square = _own_part(values, own)
    turned = square.permute(TURNED[values.ndim]).clone(memory_format=torch.contiguous_format)
    square.add_(turned).mul_(0.5)


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
