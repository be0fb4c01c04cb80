"""Arrow matrices: one for each output neuron, its weights' diagonal and one row and column for its bias."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nngeo_core.errors import NotPositiveDefiniteError
from nngeo_core.jacobians.contraction import blocks
from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.linear_algebra.damping import check_definite, check_invertible, factorize
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.linear_algebra.symmetric import eigh

__all__ = ["ArrowBlock"]


@dataclass(frozen=True, eq=False, repr=False)
class ArrowBlock:
    """The block of one layer: for each of its q G neurons the matrix [[diag(w), c], [c^T, b]] of weights w and bias b.

    Vectors are read as matrices V (..., q, G, A + 1), the bias last.

    Attributes:
        diagonal: (w, b), shape (q, G, A + 1).
        cross: c, shape (q, G, A).
        layout: Where V lies in the flat parameters. Parameters without pairs are neurons without weights, A = 0.
    """

    diagonal: Tensor
    cross: Tensor
    layout: KroneckerLayout

    @classmethod
    def from_flat(cls, diagonal: Tensor, cross: Tensor | None, layout: KroneckerLayout | None) -> "ArrowBlock":
        """The block of flat parameters.

        Args:
            diagonal: Shape (d_l,).
            cross: The entries between weights and biases in the weight's order, shape (d_weight,).
            layout: Which weights go with which bias; None, as for `cross`, if there are no pairs.
        """
        if cross is None or layout is None:
            layout = KroneckerLayout(len(diagonal), 1, 0, has_bias=True)
            cross = diagonal.new_zeros(0)
        weight, _ = layout.unpack(torch.cat((cross, diagonal.new_zeros(len(diagonal) - len(cross)))))
        return cls(layout.to_matrix(diagonal), weight, layout)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "ArrowBlock":
        """The block with both tensors changed."""
        return replace(self, diagonal=change(self.diagonal), cross=change(self.cross))

    def shifted(self, scaling: float | Tensor) -> "ArrowBlock":
        """The block plus c I."""
        return replace(self, diagonal=self.diagonal + scaling)

    def plus(self, other: "ArrowBlock") -> "ArrowBlock | None":
        """The sum; parameters without pairs take the other block's. None if the blocks pair them differently."""
        first, second = self._paired_as(other.layout), other._paired_as(self.layout)
        if first.layout != second.layout:
            return None
        return ArrowBlock(first.diagonal + second.diagonal, first.cross + second.cross, first.layout)

    def _paired_as(self, layout: KroneckerLayout) -> "ArrowBlock":
        if self.cross.numel() or layout == self.layout:
            return self
        diagonal = layout.to_matrix(self.layout.from_matrix(self.diagonal))
        return ArrowBlock(diagonal, torch.zeros_like(diagonal[..., :-1]), layout)

    def multiply(self, matrix: Tensor) -> Tensor:
        """The block times V (..., q, G, A + 1)."""
        bias = (self.cross * matrix[..., :-1]).sum(-1, keepdim=True)
        return self.diagonal * matrix + torch.cat((self.cross * matrix[..., -1:], bias), -1)

    def norm(self) -> Tensor:
        """The Frobenius norm, 0-dimensional."""
        found: Tensor = torch.hypot(euclidean_norm(self.diagonal), 2**0.5 * euclidean_norm(self.cross))
        return found

    def dense(self) -> Tensor:
        """All entries, shape (d_l, d_l), in the order of the flat parameters."""
        rows = torch.eye(self.layout.numel, dtype=self.diagonal.dtype, device=self.diagonal.device)
        return self.layout.from_matrix(self.multiply(self.layout.to_matrix(rows)))

    def solve(self, matrix: Tensor, regul: float, what: str) -> Tensor:
        """(M + r I)^-1 V, by eliminating the weights; neurons where that would not be stable, by LU.

        Elimination is stable where c^2 <= w b, as it is of every average of squares.

        Raises:
            NotPositiveDefiniteError: M + r I is singular to working precision.
        """
        damped = self.shifted(regul)
        weights, bias = damped.diagonal[..., :-1], damped.diagonal[..., -1:]
        unstable = (damped.cross.abs() > 1.5 * weights.abs().sqrt() * bias.abs().sqrt()).any(-1)
        safe = replace(
            damped,
            diagonal=torch.where(unstable.unsqueeze(-1), 1, damped.diagonal),
            cross=torch.where(unstable.unsqueeze(-1), 0, damped.cross),
        )
        found = safe._eliminated(matrix, regul, what)
        if unstable.any():
            neurons = _arrows(self.diagonal[unstable], self.cross[unstable])
            solver = factorize(neurons, regul, symmetric=True, what=what)
            columns = solver(matrix[..., unstable, :].unsqueeze(-1)).squeeze(-1)
            places = unstable.unsqueeze(-1).expand(matrix.shape)
            found = found.masked_scatter(places, columns)
        return found

    def _eliminated(self, matrix: Tensor, regul: float, what: str) -> Tensor:
        weights, ratio, complement = self._complements(regul, what)
        bias = (matrix[..., -1:] - (ratio * matrix[..., :-1]).sum(-1, keepdim=True)) / complement
        return torch.cat((matrix[..., :-1] / weights - ratio * bias, bias), -1)

    def _complements(self, regul: float, what: str) -> tuple[Tensor, Tensor, Tensor]:
        """w, c / w and b - sum c^2 / w of a block that is damped already, if none of w and the latter vanishes."""
        weights, bias = self.diagonal[..., :-1], self.diagonal[..., -1:]
        if weights.numel():
            check_invertible(weights, regul, what, exact=True)
        ratio = self.cross / weights
        taken = (self.cross * ratio).sum(-1, keepdim=True)
        scale = bias.abs() + (self.cross * ratio).abs().sum(-1, keepdim=True)
        complement = bias - taken
        rounding = torch.finfo(bias.dtype).eps * (self.cross.shape[-1] ** 0.5 if self.cross.numel() else 0.0)
        singular = ~(complement.abs() > rounding * scale)
        if singular.any():
            workable = max(1e3 * rounding * float(self.diagonal.abs().max()), 10 * regul, 1e-8 * (not regul))
            raise NotPositiveDefiniteError(
                f"{what} + {regul:g} I is singular to working precision: what its weights leave of a bias, "
                f"{float(complement[singular].abs().min()):.1e}, is within rounding of zero in {bias.dtype}; solve with "
                f"regul={workable:.0e} or more, or use a model in float64"
            )
        return weights, ratio, complement

    def solve_by_pairs(self, matrix: Tensor, regul: float, what: str) -> Tensor:
        """Ollivier's elimination: each weight from its own 2 x 2 matrix with the bias, then the bias from all weights.

        x_w = (b v_w - c v_b) / (w b - c^2) and x_b = (v_b - sum c x_w) / b, for w and b damped: not the inverse of the
        whole, but positive where every pair is.

        Raises:
            NotPositiveDefiniteError: The determinant of a pair vanishes.
        """
        damped = self.shifted(regul)
        weights, bias, cross = damped.diagonal[..., :-1], damped.diagonal[..., -1:], damped.cross
        ratio = cross / bias
        determinants, scale = weights - cross * ratio, weights.abs() + (cross * ratio).abs()  # of pairs, divided by b
        eps = torch.finfo(bias.dtype).eps
        if not ((determinants.abs() > 2 * eps * scale).all() and bias.all()):
            workable = max(100 * eps * float(self.diagonal.abs().max()), 10 * regul, 1e-8 * (not regul))
            raise NotPositiveDefiniteError(
                f"{what} + {regul:g} I has a weight and a bias whose 2 x 2 matrix is singular to working precision; solve "
                f"with regul={workable:.0e} or more, or use a model in float64"
            )
        found = (matrix[..., :-1] - ratio * matrix[..., -1:]) / determinants
        return torch.cat((found, (matrix[..., -1:] - (cross * found).sum(-1, keepdim=True)) / bias), -1)

    def definite(self, regul: float, what: str) -> tuple[Tensor, Tensor, Tensor]:
        """w, c / w and b - sum c^2 / w of M + r I, which are those of L D L^T, if it is positive definite.

        Raises:
            NotPositiveDefiniteError: It is not; names a damping that would do.
        """
        damped = self.shifted(regul)
        check_definite(damped.lowest(), regul, what, exact=True)
        found = damped._complements(regul, what)
        check_definite(found[2], regul, what, exact=True)
        return found

    def highest(self) -> Tensor:
        """The largest eigenvalue of each neuron, shape (q, G), by bisection of the secular equation (Golub 1973).

        Above all of w and b the function b - x + sum c^2 / (x - w) of x falls, and its zero is the eigenvalue.
        """
        weights, bias, cross = self.diagonal[..., :-1], self.diagonal[..., -1:], self.cross
        low = self.diagonal.amax(-1, keepdim=True)
        high = low + cross.abs().sum(-1, keepdim=True)
        for _ in range(60):
            middle = (low + high) / 2
            terms = torch.where(cross == 0, 0, cross / (middle - weights) * cross)
            below = bias - middle + terms.sum(-1, keepdim=True) > 0
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        highest: Tensor = high.squeeze(-1)
        return highest

    def lowest(self) -> Tensor:
        """The smallest eigenvalue of each neuron, shape (q, G)."""
        return -replace(self, diagonal=-self.diagonal).highest()

    def eigenvalues(self) -> Iterator[Tensor]:
        """Those of some neurons at a time, shape (m, A + 1), ascending in each."""
        for part in self._parts():
            yield eigh(self._matrices(part))[0]

    def eigenvectors(self, numbers: Tensor) -> Tensor:
        """Those of the k eigenvalues with given numbers in the order of `eigenvalues`, as flat parameters, shape (k, d_l)."""
        width = self.diagonal.shape[-1]
        neurons, place = torch.unique(numbers // width, return_inverse=True)
        vectors = eigh(self._matrices(neurons))[1][place, :, numbers % width]
        rows = self.diagonal.new_zeros(len(numbers), *self.diagonal.shape)
        rows.flatten(1, 2)[torch.arange(len(numbers), device=numbers.device), numbers // width] = vectors
        return self.layout.from_matrix(rows)

    def _parts(self) -> Iterator[slice]:
        """Slices of the neurons whose matrices fit a block of memory together."""
        width, size = self.diagonal.shape[-1], self.diagonal.element_size()
        return blocks(self.diagonal[..., 0].numel(), width * width * size)

    def _matrices(self, part: slice | Tensor) -> Tensor:
        return _arrows(self.diagonal.flatten(0, 1)[part], self.cross.flatten(0, 1)[part])


def _arrows(diagonal: Tensor, cross: Tensor) -> Tensor:
    """Matrices (m, A + 1, A + 1) from diagonals (m, A + 1) and the entries next to the bias (m, A)."""
    matrices = diagonal.diag_embed()
    matrices[:, -1, :-1] = matrices[:, :-1, -1] = cross
    return matrices
