"""Orthonormal bases with Kronecker structure, and blocks that are diagonal in them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nngeo_core.jacobians.layout import KroneckerFactors, KroneckerLayout
from nngeo_core.linear_algebra.spectrum import reciprocals, roots
from nngeo_core.parallel.group import Group
from nngeo_core.parallel.sharing import shared_out
from nngeo_reprs.factor_eigh import factor_eigh

__all__ = ["EigenBlock", "FactorSpectrum", "KroneckerBasis", "same_basis", "shared_spectra", "spectrum"]


@dataclass(frozen=True, eq=False, repr=False)
class KroneckerBasis:
    """Eigenvectors u_g (x) u_a of one layer's block, for each of q groups, kept as those of its two factors.

    Attributes:
        inputs: Columns u_a, shape (q, A, A), or (q, A + 1, A + 1) with a bias; None for unit vectors.
        outputs: Columns u_g, shape (q, G, G).
        layout: Where the matrix V (q, G, A) lies in the flat parameters.
    """

    inputs: Tensor | None
    outputs: Tensor
    layout: KroneckerLayout

    @property
    def shape(self) -> tuple[int, int, int]:
        """(q, G, A), A counting the bias."""
        return self.layout.groups, self.layout.outputs, self.layout.input_width

    def coordinates(self, matrix: Tensor) -> Tensor:
        """U_G^T V U_A of V (..., q, G, A): the coordinate for each eigenvector."""
        rotated = self.outputs.mT @ matrix
        return rotated if self.inputs is None else rotated @ self.inputs

    def matrix(self, coordinates: Tensor) -> Tensor:
        """The V (..., q, G, A) with given coordinates."""
        rotated = self.outputs @ coordinates
        return rotated if self.inputs is None else rotated @ self.inputs.mT

    def eigenvectors(self, split_weight_bias: bool) -> Tensor:
        """All of them as columns, shape (d_l, d_l), rows in the order of the flat parameters, or of V; columns in that of V."""
        rows = torch.eye(self.layout.numel, dtype=self.outputs.dtype, device=self.outputs.device)
        vectors = self.matrix(rows.unflatten(-1, self.shape))
        return self.layout.from_matrix(vectors).T if split_weight_bias else vectors.flatten(1).T

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "KroneckerBasis":
        """The basis with its tensors changed, in dtype or device."""
        inputs = None if self.inputs is None else change(self.inputs)
        return replace(self, inputs=inputs, outputs=change(self.outputs))


@dataclass(frozen=True, eq=False, repr=False)
class EigenBlock:
    """One layer's block U diag(w) U^T.

    Attributes:
        basis: U.
        values: Eigenvalues w, shape (q, G, A).
    """

    basis: KroneckerBasis
    values: Tensor

    def multiply(self, matrix: Tensor) -> Tensor:
        """The block times V (..., q, G, A)."""
        return self.basis.matrix(self.basis.coordinates(matrix).mul_(self.values))

    def diagonal(self) -> Tensor:
        """The block's diagonal, shape (q, G, A)."""
        return self.basis.mapped(torch.square).matrix(self.values)

    def dense(self, split_weight_bias: bool) -> Tensor:
        """The block, shape (d_l, d_l), in the order of the flat parameters, or of V if not `split_weight_bias`."""
        vectors = self.basis.eigenvectors(split_weight_bias)
        return vectors * self.values.flatten() @ vectors.T

    def root_values(self, what: str) -> Tensor:
        """Square roots of the eigenvalues; zero up to d_l eps times the block's largest."""
        return roots(self.values.flatten(), self.values.numel(), what).view_as(self.values)

    def reciprocal_values(self) -> Tensor:
        """Reciprocals of the eigenvalues; zero where they are at most d_l eps times the block's largest."""
        return reciprocals(self.values.flatten(), self.values.numel()).view_as(self.values)


@dataclass(frozen=True, eq=False, repr=False)
class FactorSpectrum:
    """The eigendecompositions of the symmetric factors A and G of a block.

    Attributes:
        basis: Eigenvectors of both.
        inputs: Eigenvalues of A, shape (q, A).
        outputs: Eigenvalues of G, shape (q, G).
    """

    basis: KroneckerBasis
    inputs: Tensor
    outputs: Tensor

    def products(self, input_shift: float = 0.0, output_shift: float = 0.0) -> Tensor:
        """Eigenvalues of (G + output_shift I) (x) (A + input_shift I), shape (q, G, A)."""
        return (self.outputs + output_shift).unsqueeze(-1) * (self.inputs + input_shift).unsqueeze(-2)

    def block(self) -> EigenBlock:
        """G (x) A as a block that is diagonal in the basis."""
        return EigenBlock(self.basis, self.products())

    def root(self, what: str) -> KroneckerFactors:
        """The factors' square roots; eigenvalues of a factor of width W up to W eps times its largest count as zero."""
        inputs, outputs = (
            roots(values, values.shape[-1], f"a factor of {what}") for values in (self.inputs, self.outputs)
        )
        vectors = self.basis.outputs
        return KroneckerFactors(
            inputs if self.basis.inputs is None else (self.basis.inputs * inputs.unsqueeze(-2)) @ self.basis.inputs.mT,
            (vectors * outputs.unsqueeze(-2)) @ vectors.mT,
            self.basis.layout,
        )


def spectrum(factors: KroneckerFactors) -> FactorSpectrum:
    """The eigendecompositions of both factors."""
    values, vectors = (factors.inputs, None) if factors.inputs.ndim == 2 else factor_eigh(factors.inputs)
    output_values, output_vectors = factor_eigh(factors.outputs)
    return FactorSpectrum(KroneckerBasis(vectors, output_vectors, factors.layout), values, output_values)


def shared_spectra(factors: Mapping[str, KroneckerFactors], group: Group, what: str) -> dict[str, FactorSpectrum]:
    """The eigendecompositions of all factors, each made by one process, and balanced by q W^3 for a factor W wide."""
    matrices = {f"{layer_id}.outputs": pair.outputs for layer_id, pair in factors.items()}
    matrices |= {f"{layer_id}.inputs": pair.inputs for layer_id, pair in factors.items() if pair.inputs.ndim == 3}
    costs = {name: float(len(matrix) * matrix.shape[-1] ** 3) for name, matrix in matrices.items()}
    packed = shared_out(matrices, costs, _packed_eigh, _packed_shape, group, what)
    found = {}
    for layer_id, pair in factors.items():
        outputs, inputs = packed[f"{layer_id}.outputs"], packed.get(f"{layer_id}.inputs")
        basis = KroneckerBasis(None if inputs is None else inputs[:, 1:], outputs[:, 1:], pair.layout)
        found[layer_id] = FactorSpectrum(basis, pair.inputs if inputs is None else inputs[:, 0], outputs[:, 0])
    return found


def _packed_eigh(matrix: Tensor) -> Tensor:
    """Eigenvalues as a first row above the eigenvectors, shape (q, 1 + W, W)."""
    values, vectors = factor_eigh(matrix)
    return torch.cat((values.unsqueeze(-2), vectors), -2)


def _packed_shape(matrix: Tensor) -> tuple[int, ...]:
    return len(matrix), 1 + matrix.shape[-1], matrix.shape[-1]


def same_basis(first: KroneckerBasis, second: KroneckerBasis) -> bool:
    """Whether two bases are the same one, number by number: eigenvalues then belong to the same eigenvectors."""
    if first.layout != second.layout or (first.inputs is None) != (second.inputs is None):
        return False
    pairs = [(first.outputs, second.outputs), (first.inputs, second.inputs)]
    return all(
        one is two or (one is not None and two is not None and torch.equal(one, two.to(one))) for one, two in pairs
    )
