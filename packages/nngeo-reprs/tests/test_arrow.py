"""ArrowBlock: the arrow matrices of one layer's neurons, against their dense form."""

import pytest
import torch
from torch import Tensor

from nngeo_core import KroneckerLayout
from nngeo_core.testing import relative_error
from nngeo_reprs.arrow import ArrowBlock

LAYOUTS = {
    "linear": KroneckerLayout(1, 3, 2, has_bias=True),
    "grouped": KroneckerLayout(3, 2, 4, has_bias=True),
    "transposed-convolution": KroneckerLayout(2, 3, 6, has_bias=True, leading_inputs=2),
    "bias-only": KroneckerLayout(2, 3, 0, has_bias=True),
    "no-pairs": None,
}


def flat(layout: KroneckerLayout | None) -> tuple[Tensor, Tensor | None]:
    """Diagonal and cross terms."""
    generator = torch.Generator().manual_seed(0)
    diagonal = torch.rand(5 if layout is None else layout.numel, generator=generator, dtype=torch.float64) + 1
    if layout is None:
        return diagonal, None
    return diagonal, torch.rand(layout.weight_numel, generator=generator, dtype=torch.float64) - 0.5


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_entries_are_where_the_layout_puts_them(layout: KroneckerLayout | None) -> None:
    diagonal, cross = flat(layout)
    block, expected = ArrowBlock.from_flat(diagonal, cross, layout), diagonal.diag()
    if layout is not None and cross is not None:
        places = layout.to_matrix(torch.arange(layout.numel))
        for neuron in places.flatten(0, 1).tolist():
            for weight in neuron[:-1]:
                expected[weight, neuron[-1]] = expected[neuron[-1], weight] = cross[weight]
    assert relative_error(block.dense(), expected) <= 1e-15
    assert relative_error(block.norm(), expected.norm()) <= 1e-14
    v = torch.randn(2, 3, len(diagonal), dtype=torch.float64)
    for regul in (0.0, 0.5):
        solved = block.layout.from_matrix(block.solve(block.layout.to_matrix(v), regul, "the block"))
        assert relative_error(solved @ (expected + regul * torch.eye(len(expected)).double()), v) <= 1e-12


def test_eigenvalues_some_neurons_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = KroneckerLayout(1, 7, 3, has_bias=True)
    block = ArrowBlock.from_flat(*flat(layout), layout)
    monkeypatch.setattr("nngeo_reprs.arrow.blocks", lambda count, _: (slice(k, k + 2) for k in range(0, count, 2)))
    found = torch.cat([part.flatten() for part in block.eigenvalues()]).sort().values
    assert relative_error(found, torch.linalg.eigvalsh(block.dense())) <= 1e-12


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("scale", [-1e-12, 1.0, 1e12])
def test_outermost_eigenvalues_by_bisection(layout: KroneckerLayout | None, scale: float) -> None:
    block = ArrowBlock.from_flat(*flat(layout), layout).mapped(lambda tensor: tensor * scale)
    block.cross[..., :1] = 0
    values = torch.linalg.eigvalsh(block.dense())
    assert relative_error(block.highest().max(), values[-1]) <= 1e-14
    assert relative_error(block.lowest().min(), values[0]) <= 1e-14


def test_nothing_underflows_in_float32() -> None:
    layout = KroneckerLayout(1, 3, 2, has_bias=True)
    diagonal, cross = flat(layout)
    assert cross is not None
    block = ArrowBlock.from_flat(diagonal.float(), cross.float(), layout)
    tiny, v = block.mapped(lambda tensor: tensor * 1e-24), torch.randn(1, 3, 3)
    for solve, solve_tiny in ((block.solve, tiny.solve), (block.solve_by_pairs, tiny.solve_by_pairs)):
        assert relative_error(solve_tiny(v, 0.0, "the block") * 1e-24, solve(v, 0.0, "the block")) <= 1e-5
    assert relative_error(tiny.highest() * 1e24, block.highest()) <= 1e-6


def test_blocks_that_pair_differently_have_no_sum() -> None:
    first, second = KroneckerLayout(1, 3, 3, has_bias=True), KroneckerLayout(1, 2, 5, has_bias=True)
    blocks = [ArrowBlock.from_flat(*flat(layout), layout) for layout in (first, second)]
    alone = ArrowBlock.from_flat(torch.ones(12, dtype=torch.float64), None, None)
    assert blocks[0].plus(blocks[1]) is None
    for total in (blocks[0].plus(alone), alone.plus(blocks[0])):
        assert total is not None
        assert relative_error(total.dense(), blocks[0].dense() + torch.eye(12, dtype=torch.float64)) <= 1e-15
