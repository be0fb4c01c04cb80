"""Algebra of one layer's block G (x) A, acting on parameters read as matrices V of shape (..., q, G, A).

In the row-major order of V the block is the Kronecker product of the output factor with the input factor, one for each
group: (G (x) A) vec(V) = vec(G V A^T). An input factor may be diagonal, and is then its diagonal (q, A) everywhere here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nngeo_core.jacobians.layout import KroneckerFactors, KroneckerLayout
from nngeo_core.linear_algebra.symmetric import eigh

__all__ = [
    "KroneckerBasis",
    "compose",
    "dense_block",
    "diagonal",
    "eigenbasis",
    "factored_damping",
    "multiply",
    "norms",
    "zero_factors",
]


@dataclass(frozen=True)
class KroneckerBasis:
    """The eigendecomposition of a block with symmetric factors.

    Attributes:
        input_values: Eigenvalues of A, shape (q, A).
        input_vectors: Its eigenvectors, shape (q, A, A); None where it is diagonal, so that they are the unit vectors.
        output_values: Eigenvalues of G, shape (q, G).
        output_vectors: Its eigenvectors, shape (q, G, G).
    """

    input_values: Tensor
    input_vectors: Tensor | None
    output_values: Tensor
    output_vectors: Tensor

    def eigenvalues(self, input_shift: float = 0.0, output_shift: float = 0.0) -> Tensor:
        """Eigenvalues of (G + output_shift I) (x) (A + input_shift I), shape (q, G, A)."""
        return (self.output_values + output_shift).unsqueeze(-1) * (self.input_values + input_shift).unsqueeze(-2)

    def divide(self, matrix: Tensor, eigenvalues: Tensor) -> Tensor:
        """Divide V (..., q, G, A) by eigenvalues (q, G, A) in the eigenbasis."""
        rotated = self.output_vectors.mT @ matrix
        if self.input_vectors is None:
            return self.output_vectors @ (rotated / eigenvalues)
        return self.output_vectors @ (rotated @ self.input_vectors / eigenvalues) @ self.input_vectors.mT

    def inverse(self) -> tuple[Tensor, Tensor]:
        """A^-1 and G^-1, the former as its diagonal where A is diagonal."""
        outputs = (self.output_vectors / self.output_values.unsqueeze(-2)) @ self.output_vectors.mT
        if self.input_vectors is None:
            return 1 / self.input_values, outputs
        return (self.input_vectors / self.input_values.unsqueeze(-2)) @ self.input_vectors.mT, outputs


def eigenbasis(factors: KroneckerFactors) -> KroneckerBasis:
    """The eigendecompositions of both factors."""
    values, vectors = (factors.inputs, None) if factors.inputs.ndim == 2 else eigh(factors.inputs)
    return KroneckerBasis(values, vectors, *eigh(factors.outputs))


def multiply(factors: KroneckerFactors, matrix: Tensor) -> Tensor:
    """G V A^T for V (..., q, G, A)."""
    left = factors.outputs @ matrix
    return left * factors.inputs.unsqueeze(-2) if factors.inputs.ndim == 2 else left @ factors.inputs.mT


def compose(first: KroneckerFactors, second: KroneckerFactors) -> KroneckerFactors:
    """The product of two blocks with the same layout: (G (x) A) (G' (x) A') = G G' (x) A A'."""
    a, b = first.inputs, second.inputs
    if a.ndim == b.ndim:
        inputs = a @ b if a.ndim == 3 else a * b
    else:
        inputs = a.unsqueeze(-1) * b if a.ndim == 2 else a * b.unsqueeze(-2)
    return KroneckerFactors(inputs, first.outputs @ second.outputs, first.layout)


def norms(factors: KroneckerFactors) -> Tensor:
    """The Frobenius norm of each group's block, shape (q,): |A| |G|."""
    inputs = torch.linalg.vector_norm(factors.inputs.flatten(1), dim=1)
    products: Tensor = inputs * torch.linalg.vector_norm(factors.outputs.flatten(1), dim=1)
    return products


def diagonal(factors: KroneckerFactors) -> Tensor:
    """The block's diagonal as a matrix (q, G, A)."""
    outputs = factors.outputs.diagonal(dim1=-2, dim2=-1)
    return outputs.unsqueeze(-1) * _input_diagonal(factors).unsqueeze(-2)


def _input_diagonal(factors: KroneckerFactors) -> Tensor:
    return factors.inputs if factors.inputs.ndim == 2 else factors.inputs.diagonal(dim1=-2, dim2=-1)


def dense_block(factors: KroneckerFactors, split_weight_bias: bool) -> Tensor:
    """The block, shape (d_l, d_l), in the order of the flat parameters, or in that of V if not `split_weight_bias`."""
    q, outputs, inputs = factors.layout.groups, factors.outputs.shape[-1], factors.inputs.shape[-1]
    block = factors.outputs.new_zeros(q, outputs, inputs, q, outputs, inputs)
    for k in range(q):
        a = factors.inputs[k].diag() if factors.inputs.ndim == 2 else factors.inputs[k]
        block[k, :, :, k] = torch.einsum("gh,ab->gahb", factors.outputs[k], a)  # g, h outputs; a, b inputs
    if not split_weight_bias:
        return block.flatten(3).flatten(0, 2)
    columns = factors.layout.from_matrix(block).movedim(-1, 0)
    return factors.layout.from_matrix(columns).T


def factored_damping(factors: KroneckerFactors, regul: float) -> tuple[float, float]:
    """The shifts pi sqrt(r) of A and sqrt(r) / pi of G with pi^2 = (tr A / dim A) / (tr G / dim G).

    A factor without trace (a dead layer) has no scale to balance; pi is then 1. Martens & Grosse (2015), section 6.3.
    """
    mean_input = float(_input_diagonal(factors).mean())
    mean_output = float(factors.outputs.diagonal(dim1=-2, dim2=-1).mean())
    pi = math.sqrt(mean_input / mean_output) if mean_input > 0 and mean_output > 0 else 1.0
    return pi * math.sqrt(regul), math.sqrt(regul) / pi


def zero_factors(numel: int, dtype: torch.dtype, device: torch.device) -> KroneckerFactors:
    """The zero block of a layer that was never called, as d_l groups of one weight each."""
    zero = torch.zeros(numel, 1, 1, dtype=dtype, device=device)
    return KroneckerFactors(zero, zero, KroneckerLayout(numel, 1, 1, has_bias=False))
