"""Algebra of one layer's block G (x) A, acting on parameters read as matrices V of shape (..., q, G, A).

In the row-major order of V the block is the Kronecker product of the output factor with the input factor, one for each
group: (G (x) A) vec(V) = vec(G V A^T). An input factor may be diagonal, and is then its diagonal (q, A) everywhere here.
"""

import math

import torch
from torch import Tensor

from nngeo_core.jacobians.layout import KroneckerFactors, KroneckerLayout
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.linear_algebra.spectrum import reciprocals

__all__ = [
    "averaged",
    "compose",
    "dense_block",
    "diagonal",
    "factored_damping",
    "multiply",
    "norms",
    "pseudo_inverse",
    "singular_values",
    "zero_factors",
]


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


def averaged(old: KroneckerFactors, new: KroneckerFactors, decay: float) -> KroneckerFactors | None:
    """Each factor as decay times the old one plus (1 - decay) times the new one.

    The zero block of a layer that was never called fits every layout. None if two others have different ones.
    """
    if old.layout == new.layout and old.inputs.ndim == new.inputs.ndim:
        inputs = decay * old.inputs + (1 - decay) * new.inputs
        return KroneckerFactors(inputs, decay * old.outputs + (1 - decay) * new.outputs, old.layout)
    if not old.outputs.any():
        return KroneckerFactors((1 - decay) * new.inputs, (1 - decay) * new.outputs, new.layout)
    if not new.outputs.any():
        return KroneckerFactors(decay * old.inputs, decay * old.outputs, old.layout)
    return None


def singular_values(factors: KroneckerFactors) -> Tensor:
    """All singular values of the block, shape (q, G, A): the products of those of the factors."""
    inputs = factors.inputs.abs() if factors.inputs.ndim == 2 else torch.linalg.svdvals(factors.inputs)
    products: Tensor = torch.linalg.svdvals(factors.outputs).unsqueeze(-1) * inputs.unsqueeze(-2)
    return products


def pseudo_inverse(factor: Tensor) -> Tensor:
    """The pseudo-inverse of a factor (q, W, W), or of a diagonal one (q, W), with a cut-off at W eps times its norm."""
    if factor.ndim == 2:
        return reciprocals(factor, factor.shape[-1])
    inverse: Tensor = torch.linalg.pinv(factor, rtol=factor.shape[-1] * torch.finfo(factor.dtype).eps)
    return inverse


def norms(factors: KroneckerFactors) -> Tensor:
    """The Frobenius norm of each group's block, shape (q,): |A| |G|."""
    inputs = euclidean_norm(factors.inputs.flatten(1), dim=1)
    products: Tensor = inputs * euclidean_norm(factors.outputs.flatten(1), dim=1)
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
