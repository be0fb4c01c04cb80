"""Diagonal and trace of J^T J of Jacobians that are sums over positions, without per-example gradients, on plain tensors."""

import torch
from torch import Tensor

from nngeo_core.jacobians.contraction import blocks

__all__ = ["add_squares_by_pairs_", "squared_norm_by_positions"]

# c direction; n example; s, t positions; q group; g output; a input


def add_squares_by_pairs_(total: Tensor, a: Tensor, g: Tensor) -> None:
    """Add sum_{c,n} (sum_s g a)^2 to a tensor, in place: one product over the examples for each pair of positions.

    (sum_s g_s a_s)^2 = sum_{s,t} (g_s g_t) (a_s a_t), and the directions' g_s g_t are summed before the inputs are touched.
    Round-off may not make an entry negative.

    Args:
        total: Shape (q, G, A).
        a: Shape (n, s, q, A).
        g: Shape (c, n, s, q, G).
    """
    found = torch.zeros_like(total)
    for s in range(a.shape[1]):
        for t in range(s + 1):
            outputs = (g[:, :, s] * g[:, :, t]).sum(0).permute(1, 2, 0)  # q, g, n
            inputs = (a[:, s] * a[:, t]).transpose(0, 1)  # q, n, a
            found.baddbmm_(outputs, inputs, alpha=1 if s == t else 2)
    total += found.clamp_(min=0)


def squared_norm_by_positions(a: Tensor, g: Tensor, has_bias: bool) -> Tensor:
    """The trace, 0-dimensional: the sum over pairs of positions of (g_s . g_t) (a_s . a_t + 1), the 1 with a bias.

    Args:
        a: Shape (n, s, q, A).
        g: Shape (c, n, s, q, G).
        has_bias: Whether each output has a bias.
    """
    n, s, q, _ = a.shape
    total = g.new_zeros(())
    for some in blocks(n, q * s * s * g.element_size()):
        inputs = torch.einsum("nsqa,ntqa->nqst", a[some], a[some]) + has_bias
        total += torch.einsum("cnsqg,cntqg->nqst", g[:, some], g[:, some]).mul_(inputs).sum()
    return total.clamp_(min=0)
