"""The core of attention, softmax(q k^T / sqrt(e) + mask) v, by plain products, and its derivative for many directions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nngeo_core.jacobians.contraction import blocks

__all__ = ["AttentionCore", "attend"]


@dataclass(frozen=True, eq=False)
class AttentionCore:
    """Scaled dot-product attention of n examples and h heads (Vaswani et al. 2017), with what its derivative needs.

    Attributes:
        q: Queries, shape (n, h, t, e).
        k: Keys, shape (n, h, s, e).
        v: Values, shape (n, h, s, e).
        weights: Attention weights, shape (n, h, t, s).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    weights: Tensor

    @property
    def outputs(self) -> Tensor:
        """The heads side by side, shape (n, t, h e)."""
        return _merge(self.weights @ self.v)

    def pull_back(self, outputs: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of c directions with respect to queries, keys and values, heads side by side.

        Args:
            outputs: Derivatives with respect to the outputs, shape (c, n, t, h e).
            weights: Those with respect to the attention weights where these were returned as well, shape
                (c, n, h, t, s), or with h = 1 for all heads.

        Returns:
            Shapes (c, n, t, h e), (c, n, s, h e) and (c, n, s, h e).
        """
        slices = blocks(len(outputs), 3 * self.weights.nbytes)  # scores, and what they are computed from
        found = [self._pull_back(outputs[part], None if weights is None else weights[part]) for part in slices]
        q, k, v = (torch.cat(parts) for parts in zip(*found, strict=True))
        return q, k, v

    def _pull_back(self, outputs: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The same, for directions whose scores fit in a block of memory."""
        outputs = _split(outputs, self.q.shape[1])
        from_outputs = outputs @ self.v.mT
        gradient = from_outputs if weights is None else from_outputs + weights
        centred = gradient - (gradient * self.weights).sum(-1, keepdim=True)
        scores = self.weights * centred / math.sqrt(self.q.shape[-1])
        return _merge(scores @ self.k), _merge(scores.mT @ self.q), _merge(self.weights.mT @ outputs)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> AttentionCore:
    """Run attention.

    Args:
        q: Projected queries, shape (n, t, h e).
        k: Projected keys, shape (n, s, h e).
        v: Projected values, shape (n, s, h e).
        heads: h.
        mask: What is added to the scores, broadcastable to (n, h, t, s); a query with minus infinity everywhere attends
            to nothing.

    Example:
        >>> one = torch.ones(1, 1, 2)
        >>> attend(one, one, 3 * one, heads=2, mask=None).outputs
        tensor([[[3., 3.]]])
    """
    q, k, v = (_split(part, heads) for part in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is None:
        return AttentionCore(q, k, v, scores.softmax(-1))
    scores = scores + mask
    return AttentionCore(q, k, v, scores.softmax(-1).masked_fill((scores == -math.inf).all(-1, keepdim=True), 0))


def _split(x: Tensor, heads: int) -> Tensor:
    """(..., t, h e) as (..., h, t, e)."""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(-3, -2)


def _merge(x: Tensor) -> Tensor:
    """(..., h, t, e) as (..., t, h e)."""
    return x.transpose(-3, -2).flatten(-2)
