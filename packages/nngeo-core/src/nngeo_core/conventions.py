"""What every part of nngeo agrees on: letters, scalings, dtypes, defaults.

Letters, used in docstrings, einsum legends and shapes throughout:

====== =====================================================================================================
n      examples
c      output directions (for an exact Fisher matrix of a classifier: one per class)
d      parameters of a LayerCollection; d_l those of one layer
s      positions that share the parameters: pixels, tokens, repeated calls of a module
q      groups of a grouped convolution (1 for anything else)
A, G   input and output width of a layer (of one group of it); A + 1 with the constant input of a bias
====== =====================================================================================================

Scalings. A Fisher matrix is averaged over the n examples and summed over their directions, F = (1/n) sum_i J_i^T L_i J_i,
where L_i is the likelihood's metric on the outputs of example i. Kernels are not averaged.

Order. The parameters of a layer are weight (row-major), then bias; layers follow one another as in the LayerCollection.
A function-space vector is (c, n), a Jacobian (c, n, d), a Gram matrix (c, n, c, n).

Kronecker factors. A = (1/n) sum_i sum_s a a^T sums over positions, G = (1/n) sum_i (1/s) sum_s sum_c g g^T averages over
them (Grosse & Martens 2016, KFC), so that a linear layer over positions is the convolution with kernel size 1.

Damping. `solve(v, regul)` is (M + regul I)^-1 v, exactly, for the representation M.
"""

import math
from numbers import Real

import torch
from torch import Tensor

__all__ = ["CONVENTIONS", "DEFAULT_REGUL", "checked_regul", "result_dtype"]

DEFAULT_REGUL = 1e-8

CONVENTIONS = 1
"""The number of what is said above, which files carry: it changes with any scaling, order or factor."""


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over examples are kept: that of the model, at least float32."""
    return torch.promote_types(dtype, torch.float32)


def checked_regul(regul: float | Tensor) -> float:
    """The damping as a float.

    Raises:
        ValueError: `regul` is negative, infinite, NaN, or more than one number.
        TypeError: `regul` is not a number.
    """
    if isinstance(regul, Tensor):
        if regul.ndim != 0:
            raise ValueError(f"regul is one number, the r of M + r I; got a tensor of shape {tuple(regul.shape)}")
        regul = regul.item()
    if isinstance(regul, bool) or not isinstance(regul, Real):
        raise TypeError(f"regul is one number, the r of M + r I; got {type(regul).__name__}")
    value = float(regul)
    if value < 0 or not math.isfinite(value):
        raise ValueError(f"regul is a finite number >= 0, the r of M + r I; got {value}")
    return value
