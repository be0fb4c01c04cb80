"""Tiles: whatever their size, each entry of a kernel comes once, and of a symmetric one each half."""

import pytest
import torch
from torch import Tensor

from nngeo_core import KroneckerJacobian, KroneckerLayout, LayerJacobian, ScaleShiftJacobian
from nngeo_core.jacobians.contraction import GramMethod, Pairing
from nngeo_core.testing import relative_error
from nngeo_ntk.contract import Kept
from nngeo_ntk.gradient_rows import gradient_rows
from nngeo_ntk.place import Place
from nngeo_ntk.shelf import Chunk
from nngeo_ntk.tiles import tiles

DTYPE = torch.float64


def jacobians(c: int, n: int, seed: int) -> tuple[KroneckerJacobian, LayerJacobian]:
    source = torch.Generator().manual_seed(seed)
    a, x = (torch.randn(n, 1, *shape, dtype=DTYPE, generator=source) for shape in ((1, 4), (3,)))
    g, h = (torch.randn(c, n, 1, *shape, dtype=DTYPE, generator=source) for shape in ((1, 5), (3,)))
    return KroneckerJacobian(a, g, KroneckerLayout(1, 5, 4, True)), ScaleShiftJacobian(x, h, True)


def of_a_last_layer(jacobian: KroneckerJacobian, seed: int) -> KroneckerJacobian:
    """With the same output gradients for all examples, multiples of unit vectors, of which few are about one output."""
    c, n, s, q, width = jacobian.g.shape
    units = torch.diag(torch.linspace(1, 2, width, dtype=DTYPE) + seed).roll(seed, 0)[:c].view(c, 1, 1, 1, width)
    return KroneckerJacobian(jacobian.a, units.expand(c, n, s, q, width).clone(), jacobian.layout)


def with_equal_gradients(jacobian: KroneckerJacobian, examples: slice = slice(None)) -> KroneckerJacobian:
    """With those of the first example for some."""
    g = jacobian.g.clone()
    g[:, examples] = jacobian.g[:, :1]
    return KroneckerJacobian(jacobian.a, g, jacobian.layout)


def chunk(layers: dict[str, Kept], c: int, n: int) -> Chunk:
    return Chunk(layers, slice(0, n), slice(0, c), c, DTYPE, torch.device("cpu"))


def combined(first: Tensor, second: Tensor, pairing: Pairing) -> Tensor:
    whole = torch.einsum("cnd,kmd->cnkm", first, second)
    equal = torch.einsum("cncm->cnm", whole) if pairing != "all" else whole
    return equal.sum(0) if pairing == "summed" else equal


@pytest.mark.parametrize("pairing", ["all", "equal", "summed"])
@pytest.mark.parametrize("kinds", ["structured", "gradients", "units", "equal", "twins", "every"])
@pytest.mark.parametrize(("c", "n", "m"), [(1, 9, 9), (3, 9, 4), (3, 1, 2), (5, 2, 7)])
@pytest.mark.parametrize(("rows", "size"), [(128, 2**21), (2, 100), (4, 1)])
def test_tiles_cover_the_kernel(
    pairing: Pairing, kinds: str, c: int, n: int, m: int, rows: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nngeo_ntk.tiles.ROWS", rows)
    monkeypatch.setattr("nngeo_ntk.tiles.TILE_BYTES", size)
    sides = []
    for count, seed in ((n, 0), (m, 1)):
        one, other = jacobians(c, count, seed)
        shared = {"units": of_a_last_layer(one, seed), "equal": with_equal_gradients(one)}
        shared["twins"] = with_equal_gradients(one, slice(0, 2))
        jacobian = {"structured": one, "gradients": other, **shared}
        kept: dict[str, Kept] = {**jacobian, "gradients": gradient_rows(other, DTYPE)}
        names = list(jacobian) if kinds == "every" else [kinds]
        dense = torch.cat([jacobian[name].to_dense() for name in names], 2)
        sides.append((chunk({name: kept[name] for name in names}, c, count), dense))
    (first, left), (second, right) = sides
    layers = ("structured", "gradients", "units", "equal", "twins")
    method: GramMethod | None = "positions" if kinds in layers[2:] else None
    for partner, dense in ((second, right), (first, left)):
        expected = combined(left, dense, pairing)
        found, seen = torch.zeros_like(expected), torch.zeros_like(expected)
        for tile in tiles(first, partner, layers, method, pairing):
            (some, examples), (others, partners) = tile.rows, tile.columns
            place = {"all": (some, examples, others, partners), "equal": (some, examples, partners)}.get(
                pairing, (examples, partners)
            )
            found[place] += tile.values
            seen[place] += 1
            if partner is first:
                mirror, order = {
                    "all": ((others, partners, some, examples), (2, 3, 0, 1)),
                    "equal": ((some, partners, examples), (0, 2, 1)),
                }.get(pairing, ((partners, examples), (1, 0)))
                values, ones = tile.values.clone(), torch.ones_like(tile.values)
                if tile.own is not None:
                    for part in (values, ones):
                        (part[:, :, tile.own[0], tile.own[1]] if pairing == "all" else part[..., tile.own[1]]).zero_()
                found[mirror] += values.permute(order)
                seen[mirror] += ones.permute(order)
        assert relative_error(found, expected * seen) <= 1e-12
        if partner is second:
            assert (seen.min(), seen.max()) == (1, 1)
        else:  # what rows have with themselves comes once, and is told apart
            assert (combined_diagonal(seen) == 1).all() and seen.min() >= 1


def combined_diagonal(kernel: Tensor) -> Tensor:
    if kernel.ndim == 4:
        return kernel.flatten(2).flatten(0, 1).diagonal()
    return kernel.diagonal(dim1=-2, dim2=-1)


@pytest.mark.parametrize(("n", "m", "width"), [(3, 3, 3), (3, 3, 5), (9, 9, 9), (3, 4, 4)])
def test_tiles_are_computed_where_they_stay(n: int, m: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where that is a matrix in memory: not in the middle of wider rows, of several directions."""
    monkeypatch.setattr("nngeo_ntk.tiles.ROWS", 4)
    c = 4
    out = torch.full((c, n, c, width), float("nan"), dtype=DTYPE)

    def room(rows: Place, columns: Place) -> Tensor:
        return out[rows[0], rows[1], columns[0], columns[1]]

    one, other = jacobians(c, n, 0)[0], jacobians(c, m, 1)[0]
    stayed = []
    for tile in tiles(chunk({"layer": one}, c, n), chunk({"layer": other}, c, m), ("layer",), None, "all", room):
        place = room(tile.rows, tile.columns)
        assert tile.stays == (place.data_ptr() == tile.values.data_ptr())
        stayed.append(tile.stays)
        place.copy_(tile.values)
    assert all(stayed) == (m == width)
    assert relative_error(out[..., :m], combined(one.to_dense(), other.to_dense(), "all")) <= 1e-12
