"""The floor of solutions, and the eigendecompositions beside it, which are timed apart: bare calls on the problem's factors."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers.ours import Ours
from benchmarks.peers.problem import DAMPING, Operation, Problem
from benchmarks.peers.timing import plain

__all__ = ["decompositions", "solve_floor"]

DECOMPOSED = ("ekfac", "kfac solve, first")
"""The operations that decompose the Kronecker factors."""


def decompositions(problem: Problem, name: str) -> Operation | None:
    """The eigendecompositions of an operation's factors, each one call of torch; None where it has none.

    The factors are those of the data: how long a decomposition takes depends on its eigenvalues.
    """
    if name not in DECOMPOSED:
        return None
    factors = _factors(problem)
    return plain(lambda: [torch.linalg.eigh(factor) for pair in factors for factor in pair])


def solve_floor(problem: Problem, name: str) -> Operation | None:
    """Four rotations for each Kronecker product; Cholesky's factorization and two triangular halves; None for all else."""
    if name.startswith("kfac solve"):
        pairs = _factors(problem)
        shaped = [torch.randn(g.shape[-1], a.shape[-1]) for a, g in pairs]
        return plain(lambda: [g[0] @ (g[0].T @ v @ a[0]) @ a[0].T for (a, g), v in zip(pairs, shaped, strict=True)])
    if name.startswith("dense solve"):
        matrix = Ours(problem).build("dense").data
        matrix = matrix + DAMPING * torch.eye(len(matrix))
        triangle, v = torch.linalg.cholesky(matrix), torch.randn(len(matrix), 1)
        if name.endswith("first"):
            return plain(lambda: (torch.linalg.cholesky(matrix), _halves(triangle, v)))
        return plain(lambda: _halves(triangle, v))
    return None


def _halves(triangle: Tensor, v: Tensor) -> Tensor:
    solve: Callable[..., Tensor] = torch.linalg.solve_triangular
    return solve(triangle.mT, solve(triangle, v, upper=False), upper=True)


def _factors(problem: Problem) -> list[tuple[Tensor, Tensor]]:
    """The input and the output factor of each layer."""
    ours = Ours(problem)
    return [(pair.inputs, pair.outputs) for pair in ours.build("kfac", ours.factored_layers()).data.values()]
