"""Every operation of one matrix, against its own entries: finite, and right by residual; or refused with a way out."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nngeo import PMat, PMatEye, PVector, UnsupportedOperationError, random_pvector

__all__ = ["Cells", "check_cells", "entries"]


def entries(matrix: PMat) -> Tensor:
    """All of them, in float64, also where nothing of the kind is stored."""
    found: Tensor = matrix.convert("dense").get_dense_tensor()
    return found.double()


def check_cells(matrix: PMat, other: PMat, tolerance: float) -> "Cells":
    """Check all operations.

    Args:
        matrix: Symmetric; damped above its negative eigenvalues, if it has any.
        other: Another one of the same representation, about the same layers.
        tolerance: Relative error, in units of the largest eigenvalue.
    """
    cells = Cells(matrix, other, tolerance)
    for check in (cells.products, cells.numbers, cells.damped, cells.undamped, cells.combined, cells.spectrum):
        check()
    return cells


@dataclass
class Cells:
    """One matrix with what its operations are compared with.

    Attributes:
        refused: What the representation has no exact meaning for.
    """

    matrix: PMat
    other: PMat
    tolerance: float
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dense = entries(self.matrix)
        self.d = len(self.dense)
        self.eye = torch.eye(self.d, dtype=torch.float64)
        self.scale = float(torch.linalg.matrix_norm(self.dense, 2))
        lowest = float(torch.linalg.eigvalsh(self.dense)[0])  # negative for a quasi-diagonal matrix
        self.regul = 0.1 * self.scale + 2 * max(-lowest, 0.0) or 0.1
        generator = torch.Generator().manual_seed(3)
        self.v = random_pvector(self.matrix.layer_collection, dtype=self.matrix.dtype, generator=generator)
        self.flat = _flat(self.v)

    def attempt(self, name: str, run: Callable[[], Any]) -> Any:
        """The result; None if the cell is refused, with a message that says what to do instead."""
        try:
            return run()
        except UnsupportedOperationError as error:
            assert re.search(r"; .*\w", str(error)), f"{name} says no way out: {error}"
            self.refused.append(name)
            return None

    def near(self, found: Tensor, expected: Tensor | float, scale: float, name: str) -> None:
        """The difference is within the tolerance of a scale; NaN and infinity are not."""
        difference = float(torch.as_tensor(found.double() - expected).norm())
        assert difference <= self.tolerance * scale, f"{name}: off by {difference:.1e} at scale {scale:.1e}"

    def same(self, matrix: PMat | None, expected: Tensor, name: str) -> None:
        """A matrix has the expected entries."""
        if matrix is not None:
            self.near(entries(matrix), expected, float(expected.norm()) + self.tolerance * self.scale, name)

    def products(self) -> None:
        """Mv, batches, v^T M v."""
        size = self.scale * float(self.flat.norm())
        self.near(_flat(self.matrix @ self.v), self.dense @ self.flat, size, "mv")
        rows = torch.stack([self.flat, -2 * self.flat]).to(self.matrix.dtype)
        self.near(self.matrix @ rows.unsqueeze(0), (rows.double() @ self.dense).unsqueeze(0), 3 * size, "batch")
        self.near(self.matrix.vTMv(self.v), self.flat @ self.dense @ self.flat, size * float(self.flat.norm()), "vTMv")

    def numbers(self) -> None:
        """Trace, norms, diagonal, by layer, and in another dtype."""
        values = torch.linalg.svdvals(self.dense)
        expected = {
            "trace": (self.matrix.trace, self.dense.trace()),
            "norm(fro)": (self.matrix.norm, self.dense.norm()),
            "norm(2)": (lambda: self.matrix.norm(2), values[0]),
            "norm(-2)": (lambda: self.matrix.norm(-2), values[-1]),
            "get_diag": (self.matrix.get_diag, self.dense.diagonal()),
        }
        for name, (run, value) in expected.items():
            found = self.attempt(name, run)
            if found is not None:
                self.near(found, value, self.scale * self.d, name)
        places = self.matrix.layer_collection.slices()
        for name, by_layer in {"trace": self.matrix.trace_per_layer, "norm": self.matrix.norm_per_layer}.items():
            for layer_id, found in (self.attempt(f"{name} per layer", by_layer) or {}).items():
                block = self.dense[places[layer_id], places[layer_id]]
                self.near(found, block.trace() if name == "trace" else block.norm(), self.scale * self.d, name)
        wide = self.attempt("to", lambda: self.matrix.to(torch.float64))
        if wide is not None:
            assert wide.dtype == torch.float64
            self.same(wide, self.dense, "to")

    def damped(self) -> None:
        """Solve, inverse, log-determinant and samples of M + r I."""
        damped = self.dense + self.regul * self.eye
        size = self.scale + self.regul
        solution = self.attempt("solve", lambda: self.matrix.solve(self.v, self.regul))
        if solution is not None:
            x = _flat(solution)
            self.near(damped @ x, self.flat, size * float(x.norm()) + float(self.flat.norm()), "solve")
        inverse = self.attempt("inverse", lambda: self.matrix.inverse(self.regul))
        self.same(inverse, torch.linalg.inv(damped), "inverse")
        logdet = self.attempt("logdet", lambda: self.matrix.logdet(self.regul))
        if logdet is not None:
            expected = torch.linalg.slogdet(damped)[1]
            self.near(logdet, expected, self.d * (10 + abs(float(expected)) / self.d), "logdet")
        draw = self.attempt("sample", lambda: self.matrix.sample(self.regul, torch.Generator().manual_seed(0)))
        if draw is not None:
            x = _flat(draw)
            distance = float(x @ damped @ x)  # chi-squared with d degrees of freedom
            assert abs(distance - self.d) <= 6 * (2 * self.d) ** 0.5 + 12, f"sample: {distance} for {self.d}"

    def undamped(self) -> None:
        """Root and pseudo-inverse."""
        root = self.attempt("sqrt", self.matrix.sqrt)
        if root is not None:
            r = entries(root)
            self.near(r @ r, self.dense, self.scale * self.d, "sqrt")
        inverse = self.attempt("pinv", self.matrix.pinv)
        if inverse is not None:
            p = entries(inverse)
            condition = float(p.norm()) * self.scale
            self.near(self.dense @ p @ self.dense, self.dense, self.scale * self.d * max(condition, 1), "pinv")
            self.near(p @ self.dense @ p, p, float(p.norm()) * self.d * max(condition, 1), "pinv")

    def combined(self) -> None:
        """Multiples, sums, products, and multiples of the identity."""
        theirs = entries(self.other)
        self.same(self.matrix * 0.5, self.dense * 0.5, "multiple")
        self.same(self.attempt("+", lambda: self.matrix + self.other), self.dense + theirs, "+")
        difference = self.attempt("-", lambda: self.matrix - self.other)
        if difference is not None:
            self.near(entries(difference), self.dense - theirs, self.scale * self.d + float(theirs.norm()), "-")
        unit = self.other * (1 / (float(theirs.norm()) or 1.0))  # squares of large numbers are beyond float32
        product = self.attempt("mm", lambda: self.matrix.mm(unit))
        if product is not None:
            self.near(entries(product), self.dense @ entries(unit), self.scale * self.d, "mm")
        shift = PMatEye(layer_collection=self.matrix.layer_collection, scaling=self.regul)
        self.same(self.attempt("+ c I", lambda: self.matrix + shift), self.dense + self.regul * self.eye, "+ c I")

    def spectrum(self) -> None:
        """M u = w u for orthonormal u, and the largest eigenvalues."""
        found = self.attempt("eigendecomposition", lambda: self.matrix.eigendecomposition(1))
        if found is not None:
            values, u = found.values, found.vectors().double()
            self.near(values, torch.linalg.eigvalsh(self.dense)[-1:], self.scale * self.d, "eigenvalues")
            self.near(u @ self.dense, values.double().unsqueeze(1) * u, self.scale * self.d, "eigenvectors")
            self.near(u @ u.T, torch.eye(1, dtype=torch.float64), self.d, "orthonormal")


def _flat(v: PVector) -> Tensor:
    return v.get_flat_representation().double()
