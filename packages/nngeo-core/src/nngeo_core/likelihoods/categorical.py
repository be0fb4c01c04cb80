"""Categorical likelihoods: one class for each example, given logits or log-probabilities, or for each of its positions."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from nngeo_core.errors import ShapeError
from nngeo_core.likelihoods.base import Likelihood

__all__ = ["Categorical", "ClassifLogSoftmax", "ClassifLogits", "IGNORED"]

IGNORED = -100
"""The label that torch's losses and transformers leave out."""


class Categorical(Likelihood):
    """A class for each of T independent positions of each example; for classification there is one.

    Where p = softmax(z) for the logits z of a position, its metric is L = diag(p) - p p^T = R (I - r r^T) R with r = sqrt(p)
    and R = diag(r). The reflection that takes r to -e_K (Householder 1958) has K - 1 other columns, which are orthonormal and
    orthogonal to r: R times these is a square root of L, whose columns are

        sqrt(p_k) (e_k - (p + sqrt(p_K) e_K) / (1 + sqrt(p_K))),  k = 1 ... K - 1.

    Nothing is factored numerically, and 1 - p_k is the sum of the others: they stay accurate for confident logits. The metric
    of an example is block-diagonal: it has T (K - 1) directions, each non-zero at one position.
    """

    class_axis: ClassVar[int]

    def n_output(self, outputs: Tensor) -> int:
        """Number of classes K."""
        return outputs.shape[self.class_axis]

    def n_directions(self, outputs: Tensor, targets: Any = None) -> int:
        """T times the number of columns for one position."""
        classes = self.n_output(outputs)
        return math.prod(outputs.shape[1:]) // classes * self.n_columns(classes)

    def n_columns(self, classes: int) -> int:
        """Columns of the square root of one position's metric: one for each class but the last, K - 1."""
        return classes - 1

    def directions(self, outputs: Tensor, targets: Any, chosen: slice) -> Tensor:
        """Those of the chosen pairs of position (row-major) and column, the column running faster; shape (k, *outputs)."""
        rows = self.rows(outputs)
        n, positions, classes = rows.shape
        numbers = torch.arange(chosen.start, chosen.stop, device=outputs.device)
        place, k = numbers // self.n_columns(classes), numbers % self.n_columns(classes)
        if positions == 1:
            return self.unrow(self.columns(rows, k).unsqueeze(2), outputs)
        spread = rows.new_zeros(len(numbers), n, positions, classes)
        spread[torch.arange(len(numbers), device=outputs.device), :, place] = self.columns(rows[:, place], k)
        return self.unrow(spread, outputs)

    def columns(self, z: Tensor, k: Tensor) -> Tensor:
        """Columns k (c,) of the square root, shape (c, n, K), for logits z (n, c, K), or (n, 1, K) for all of them."""
        log_p = z.log_softmax(2).transpose(0, 1)
        columns = -log_p.exp().repeat(len(k) // len(log_p), 1, 1)
        roots, own = (log_p / 2).exp().expand_as(columns), k.view(-1, 1, 1).expand(-1, len(z), 1)
        last = roots[..., -1:]
        columns.scatter_(2, own, 0)
        diagonal = last - columns.sum(2, keepdim=True)  # sqrt(p_K) + 1 - p_k
        columns.scatter_(2, own, diagonal).div_(1 + last)
        columns[..., -1:] = -last
        return columns.mul_(roots.gather(2, own))

    def metric(self, outputs: Tensor, u: Tensor, targets: Any = None) -> Tensor:
        """p * (u - p.u) at each position; u is taken relative to the likeliest class, where u - p.u would cancel."""
        axis = self.class_axis
        p = torch.softmax(outputs, axis)
        u = u - u.gather(axis, outputs.argmax(axis, keepdim=True))
        return p * (u - (p * u).sum(axis, keepdim=True))

    def spread(self, mask: Tensor, outputs: Tensor) -> Tensor:
        """The mask (n, T) with the positions' axes, and a class axis of length one."""
        return mask.view(outputs.movedim(self.class_axis, -1).shape[:-1]).unsqueeze(self.class_axis)

    def draws_shape(self, outputs: Tensor) -> tuple[int, ...]:
        """One number for each position."""
        return (self.rows(outputs).shape[1],)

    def sample(self, outputs: Tensor, uniform: Tensor) -> Tensor:
        """Classes by inversion of their distribution function, shape (n, *positions)."""
        cumulated = self._probabilities(self.rows(outputs).double()).cumsum(2)
        drawn = torch.searchsorted(cumulated, (uniform * cumulated[..., -1]).unsqueeze(2)).squeeze(2)
        return drawn.view(outputs.movedim(self.class_axis, -1).shape[:-1])

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """e_y - p at each position; zero where the label is -100, as for torch's losses."""
        score = self._one_hot(outputs, y) - self._probabilities(outputs, self.class_axis)
        return score.masked_fill_((y == IGNORED).unsqueeze(self.class_axis), 0)

    def _one_hot(self, outputs: Tensor, y: Tensor) -> Tensor:
        shape = outputs.movedim(self.class_axis, -1).shape[:-1]
        if y.is_floating_point() or y.shape != shape:
            raise ShapeError(
                f"variant '{self.name}' expects a class for each position, integers of shape {tuple(shape)}; got targets "
                f"of shape {tuple(y.shape)} and dtype {y.dtype}"
            )
        classes, y = self.n_output(outputs), y.long()
        wrong = (y >= classes) | ((y < 0) & (y != IGNORED))
        if wrong.any():
            label = max(y[wrong].tolist(), key=abs)
            raise ValueError(
                f"a target is class {label}, and the model returns {classes} classes, from 0 on; {IGNORED} alone is ignored"
            )
        one_hot = torch.nn.functional.one_hot(y.clamp(min=0), classes).to(outputs.dtype)
        return one_hot.movedim(-1, self.class_axis)

    def _probabilities(self, outputs: Tensor, axis: int = -1) -> Tensor:
        return outputs.softmax(axis)

    def rows(self, outputs: Tensor) -> Tensor:
        """Shape (n, T, K)."""
        moved = outputs.movedim(self.class_axis, -1)
        return moved.reshape(len(outputs), -1, moved.shape[-1])

    def unrow(self, rows: Tensor, outputs: Tensor) -> Tensor:
        """(c, n, T, K) as (c, *outputs' shape)."""
        shape = outputs.movedim(self.class_axis, -1).shape
        return rows.view(len(rows), *shape).movedim(-1, self.class_axis + 1 if self.class_axis > 0 else -1)


class ClassifLogits(Categorical):
    """Softmax classification: p(y | x) = softmax(f(x))_y with outputs (n, classes).

    Example:
        >>> outputs = torch.zeros(1, 2)
        >>> ClassifLogits().metric(outputs, torch.tensor([[1.0, 0.0]]))
        tensor([[ 0.2500, -0.2500]])
    """

    name = "classif_logits"
    class_axis = 1

    def check(self, outputs: Tensor) -> None:
        """Outputs are (n, classes).

        Raises:
            ShapeError: They are not; names the kind that fits.
        """
        if outputs.ndim == 2 and outputs.shape[1] > 1:
            return
        fits = {
            1: "'classif_binary_logits' takes one logit",
            2: "'classif_binary_logits' takes one logit, 'regression' one value",
            3: "'causal_lm_logits' takes (n, T, classes), 'segmentation_logits' (n, classes, positions)",
        }.get(outputs.ndim, "'segmentation_logits' takes (n, classes, *positions)")
        raise ShapeError(
            f"variant '{self.name}' expects outputs of shape (n, classes) with two classes at least, got "
            f"{tuple(outputs.shape)}; {fits}, or give a `function` that returns another shape"
        )


class ClassifLogSoftmax(ClassifLogits):
    """Classification by a model that ends in log_softmax: p(y | x) = exp(f(x)_y) with outputs (n, classes).

    The metric with respect to the log-probabilities is L = diag(p); F is that of the logits before.

    Example:
        >>> outputs = torch.zeros(1, 2).log_softmax(1)
        >>> ClassifLogSoftmax().metric(outputs, torch.tensor([[1.0, 0.0]]))
        tensor([[0.5000, 0.0000]])
    """

    name = "classif_logsoftmax"

    def check(self, outputs: Tensor) -> None:
        """Outputs are (n, classes), logarithms of probabilities.

        Raises:
            ShapeError: They have another shape.
            ValueError: Their exponentials do not sum to one.
        """
        super().check(outputs)
        totals = outputs.detach().logsumexp(1)
        if (totals.abs() > 100 * torch.finfo(outputs.dtype).eps * outputs.shape[1]).any():
            raise ValueError(
                f"variant '{self.name}' expects log-probabilities, and the exponentials of an example's outputs sum to "
                f"{float(totals.abs().max().exp()):.3g}; end the model in log_softmax(1), or use 'classif_logits'"
            )

    def n_columns(self, classes: int) -> int:
        """One for each class."""
        return classes

    def columns(self, z: Tensor, k: Tensor) -> Tensor:
        """sqrt(p_k) e_k, shape (c, n, K)."""
        columns = torch.nn.functional.one_hot(k, z.shape[2]).to(z.dtype).unsqueeze(1)
        return columns * (z.transpose(0, 1) / 2).exp()

    def metric(self, outputs: Tensor, u: Tensor, targets: Any = None) -> Tensor:
        """p * u, shape (n, classes)."""
        return outputs.exp() * u

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """e_y."""
        return self._one_hot(outputs, y)

    def _probabilities(self, outputs: Tensor, axis: int = -1) -> Tensor:
        return outputs.exp()
