"""The floor of an operation: the matrix products and convolutions that it must do, called bare on the problem's shapes.

What is not counted is said in `benchmarks/bare.py`.
"""

from functools import partial

import torch
from torch import Tensor

from benchmarks.bare import Bare, bare_layers
from benchmarks.peers.problem import Operation, Problem
from benchmarks.peers.timing import plain, seconds

__all__ = ["floor"]

CHUNKS = (2, 4, 8, 16, 64)
"""Numbers of examples that are tried together: the fastest is the floor."""
WIDTHS = (64, 128, 256, 512)
"""Rows of a symmetric product that are tried together, of which the upper half is formed."""
LARGEST = 1 << 28
"""Bytes that the output gradients of one layer may take in a chunk: a larger one is not tried."""

SWEEPS: dict[str, tuple[str, ...]] = {
    "product": ("apply", "tangent", "backward", "weight_gradient"),
    "quadratic form": ("apply", "tangent"),
    "trace": ("apply", "backward", "traces"),
    "diag": ("apply", "backward", "gradients"),
    "quasidiag": ("apply", "backward", "gradients"),
    "kfac": ("apply", "backward", "factors"),
    "ekfac": ("apply", "backward", "factors", "apply", "backward", "rotations"),
    "dense": ("apply", "backward"),
    "blockdiag": ("apply", "backward"),
    "gram": ("apply", "backward", "form_gradients"),
}
"""What an operation does in each layer, chunk by chunk."""
OF_PARAMETERS = ("weight_gradient", "gradients", "form_gradients", "traces", "factors", "rotations")
"""The steps of the layers that the operation is about."""


def floor(problem: Problem, name: str) -> Operation | None:
    """The bare products of an operation over all examples, in the chunks that serve it best; None where it is not counted."""
    if name not in SWEEPS:
        return None
    sweep = _fastest([_sweep(problem, name, size) for size in _sizes(problem, name)])
    rows = _rows(problem, name)
    if not rows:
        return sweep
    whole = _fastest([plain(partial(_upper_halves, rows, width)) for width in WIDTHS])
    return plain(lambda: (sweep.run(), whole.run()))


def _sizes(problem: Problem, name: str) -> list[int]:
    """The sizes of chunks that fit, and that all examples can be cut into."""
    layers = bare_layers(problem, 1, _directions(problem, name), "kfac" in name)
    largest = max(layer.g.nbytes for layer in layers)
    return [size for size in CHUNKS if size * largest < LARGEST and len(problem.inputs) % size == 0] or [1]


def _directions(problem: Problem, name: str) -> int:
    """One for products; one for each output in a kernel; for a softmax's metric its rank, one less."""
    if name in ("product", "quadratic form"):
        return 1
    return problem.outputs if name == "gram" else problem.outputs - 1


def _fastest(candidates: list[Operation]) -> Operation:
    return min(candidates, key=lambda one: min(seconds(one) for _ in range(3)))


def _sweep(problem: Problem, name: str, size: int) -> Operation:
    """All examples in chunks of a size, forward and backward, with what is done at each layer on the way."""
    layers = bare_layers(problem, size, _directions(problem, name), "kfac" in name)
    work = [(layer, step) for step in SWEEPS[name] for layer in layers if layer.wanted or step not in OF_PARAMETERS]

    def run() -> None:
        for _ in range(len(problem.inputs) // size):
            for layer, step in work:
                getattr(layer, step)()

    return plain(run)


def _rows(problem: Problem, name: str) -> list[Tensor]:
    """Whose products with each other are formed from all examples together: rows of J for a kernel, of J^T for a matrix."""
    c, n = _directions(problem, name), len(problem.inputs)
    if name == "gram":
        layers = [layer for layer in bare_layers(problem, n, c) if isinstance(layer, Bare)]
        return [rows for layer in layers for rows in layer.kernel_rows()]
    sizes = [sum(p.numel() for p in module.parameters(recurse=False)) for module in problem.model.modules()]
    if name == "dense":
        return [torch.randn(sum(sizes), c * n)]
    return [torch.randn(size, c * n) for size in sizes if size] if name == "blockdiag" else []


def _upper_halves(some: list[Tensor], width: int) -> None:
    """The products of rows with each other, each pair once but for what lies within a block of rows."""
    for rows in some:
        for start in range(0, len(rows), width):
            rows[start : start + width] @ rows[start:].T
