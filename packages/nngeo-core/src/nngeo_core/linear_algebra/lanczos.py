"""Block Lanczos with full reorthogonalization: leading eigenpairs, norms and spectral densities from products alone.

A Krylov space of k starting vectors holds an eigenvalue up to k times, so that the k leading ones are found with their
multiplicities (Golub & Underwood 1977); without reorthogonalization copies would appear that are none (Paige 1972).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nngeo_core.errors import ConvergenceError, NonFiniteError
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.linear_algebra.linear_map import Rows
from nngeo_core.linear_algebra.norms import euclidean_norm

__all__ = ["Eigenpairs", "Krylov", "leading_eigenpairs", "spectral_norm"]


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Some eigenvalues with their vectors, and how well these are known.

    Attributes:
        values: Shape (k,), ascending.
        vectors: Orthonormal rows, shape (k, d).
        residuals: |M u - w u| of each, shape (k,): an eigenvalue of M lies within that of w.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


class Krylov:
    """An orthonormal basis of the space of start, M start, M^2 start, ..., and M in that basis.

    Args:
        apply: M v for each row v of a tensor (k, d), M symmetric.
        start: Linearly independent rows, shape (b, d).
        generator: Draws vectors that go on where the space is exhausted.
    """

    def __init__(self, apply: Rows, start: Tensor, generator: torch.Generator) -> None:
        self._apply = apply
        self._generator = generator
        self._eps = torch.finfo(start.dtype).eps
        self.basis = start.new_zeros(0, start.shape[1])
        self.matrix = start.new_zeros(0, 0)
        self._next, _ = self._orthonormal(start, start.new_zeros(len(start)))

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans the whole space."""
        return not len(self._next)

    def extend(self) -> None:
        """One more block: as many products as there were starting vectors."""
        block, before = self._next, len(self.basis)
        product = self._apply(block)
        if not all_finite(product):
            raise NonFiniteError("a product with a vector has a NaN or an infinity")
        self.basis = torch.cat((self.basis, block))
        coefficients = self.basis @ product.T
        grown = product.new_zeros(len(self.basis), len(self.basis))
        grown[:before, :before] = self.matrix
        grown[:, before:], grown[before:] = coefficients, coefficients.T
        corner = grown[before:, before:]
        grown[before:, before:] = (corner + corner.T) / 2
        self.matrix = grown
        rest = product - coefficients.T @ self.basis
        self._next, self._coupling = self._orthonormal(rest, euclidean_norm(product, dim=1))

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues of M in the basis, ascending; their vectors in it, as rows; and what |M u - w u| each has at most."""
        values, vectors = torch.linalg.eigh(self.matrix)
        last = vectors[len(self.basis) - self._coupling.shape[1] :]
        return values, vectors.T, euclidean_norm(self._coupling @ last, dim=0)

    def _orthonormal(self, rows: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Rows made orthonormal and orthogonal to the basis, and their coefficients: rows = coefficients^T result.

        A row within rounding of the others' span is replaced by a random one, with coefficients zero, as long as there
        is room.
        """
        room = rows.shape[1] - len(self.basis)
        found: list[Tensor] = []
        coefficients = rows.new_zeros(min(room, len(rows)), len(rows))
        for place, (row, size) in enumerate(zip(rows, sizes, strict=True)):
            if len(found) == room:
                break
            previous = torch.stack(found) if found else rows[:0]
            rest, parts = self._without(row, previous)
            length = euclidean_norm(rest)
            if length > 100 * self._eps * size:
                coefficients[: len(found), place] = parts
                coefficients[len(found), place] = length
                found.append(rest / length)
            else:
                found.append(self._random(previous))
        result = torch.stack(found) if found else rows[:0]
        for place in range(len(found), len(rows)):
            coefficients[:, place] = result @ rows[place]
        return result, coefficients

    def _without(self, row: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """A row less its components in the basis and in other orthonormal rows, taken off twice; and the latter's size."""
        parts = row.new_zeros(len(previous))
        for _ in range(2):
            row = row - (self.basis @ row) @ self.basis
            more = previous @ row
            row, parts = row - more @ previous, parts + more
        return row, parts

    def _random(self, previous: Tensor) -> Tensor:
        row = torch.randn(self.basis.shape[1], generator=self._generator, device=self._generator.device)
        rest, _ = self._without(row.to(self.basis), previous)
        rest, _ = self._without(rest / euclidean_norm(rest), previous)
        unit: Tensor = rest / euclidean_norm(rest)
        return unit


def leading_eigenpairs(
    apply: Rows,
    size: int,
    k: int,
    dtype: torch.dtype,
    device: torch.device,
    tol: float = 1e-10,
    max_products: int | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """The k largest eigenvalues of a symmetric M with their multiplicities, and orthonormal eigenvectors.

    Args:
        apply: M v for each row v of a tensor (k, d).
        size: d.
        k: How many.
        dtype: That of the products.
        device: Where they are taken.
        tol: What residuals may be, relative to the largest |w| found; rounding is allowed for.
        max_products: How many products to take; they and as many vectors of length d are kept. None for 20 k + 300.
        generator: Draws the starting vectors; None for a fixed seed.

    Raises:
        ValueError: k is not between 1 and d.
        ConvergenceError: The residuals are larger after `max_products`.
        NonFiniteError: A product has a NaN or an infinity.

    Example:
        >>> found = leading_eigenpairs(lambda rows: rows * torch.arange(5.0), 5, 2, torch.float32, torch.device("cpu"))
        >>> found.values.round()
        tensor([3., 4.])
    """
    krylov, chosen = _converged(apply, size, k, dtype, device, tol, max_products, generator, by_size=False)
    _, rows, _ = krylov.ritz()
    vectors = rows[chosen] @ krylov.basis
    products = apply(vectors)
    values = (vectors * products).sum(1)
    residuals = euclidean_norm(products - values.unsqueeze(1) * vectors, dim=1)
    return Eigenpairs(values, vectors, residuals)


def spectral_norm(
    apply: Rows,
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    tol: float = 1e-10,
    max_products: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The largest |w| of a symmetric M, and a bound of its distance from an eigenvalue, both 0-dimensional.

    Takes and raises what `leading_eigenpairs` does. The value is never above |M|, up to rounding.
    """
    krylov, chosen = _converged(apply, size, 1, dtype, device, tol, max_products, generator, by_size=True)
    values, _, bounds = krylov.ritz()
    return values[chosen].abs().squeeze(0), bounds[chosen].squeeze(0)


def _converged(
    apply: Rows,
    size: int,
    k: int,
    dtype: torch.dtype,
    device: torch.device,
    tol: float,
    max_products: int | None,
    generator: torch.Generator | None,
    by_size: bool,
) -> tuple[Krylov, Tensor]:
    """A Krylov space with k converged Ritz values, and their places."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= size:
        raise ValueError(f"k is how many eigenvalues to take, 1 to {size}; got {k!r}")
    source = torch.Generator().manual_seed(0) if generator is None else generator
    start = torch.randn(k, size, generator=source, device=source.device).to(device=device, dtype=dtype)
    krylov, most = Krylov(apply, start, source), 20 * k + 300 if max_products is None else max_products
    while True:
        krylov.extend()
        values, _, bounds = krylov.ritz()
        chosen = (values.abs() if by_size else values).argsort()[-k:]
        scale = values.abs().max()
        if krylov.exhausted or bool((bounds[chosen] <= max(tol, 4 * torch.finfo(dtype).eps) * scale).all()):
            return krylov, chosen
        if len(krylov.basis) + k > most:
            raise ConvergenceError(
                f"Lanczos left a residual of {float(bounds[chosen].max() / scale):.1e} |M| after {len(krylov.basis)} products, "
                f"where tol={tol:g}; give a larger tol, or more max_products (they and as many vectors are kept)"
            )
