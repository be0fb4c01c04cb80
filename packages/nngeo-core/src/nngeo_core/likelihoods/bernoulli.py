"""Bernoulli likelihoods: yes or no, once or for each of several labels, given logits."""

import math
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import ShapeError
from nngeo_core.likelihoods.base import Likelihood

__all__ = ["BinaryLogits", "MultilabelLogits"]


class MultilabelLogits(Likelihood):
    """Labels that hold or not, independently: p(y_k = 1 | x) = sigmoid(f(x)_k) with outputs (n, labels).

    The metric is diagonal, L = diag(sigma(f_k) sigma(-f_k)), which is accurate for confident logits.

    Example:
        >>> MultilabelLogits().metric(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([[0.2500, 0.2500]])
    """

    name = "multilabel_logits"

    def check(self, outputs: Tensor) -> None:
        """Outputs are (n, labels).

        Raises:
            ShapeError: They are not.
        """
        if outputs.ndim != 2:
            raise ShapeError(
                f"variant '{self.name}' expects outputs of shape (n, labels), got {tuple(outputs.shape)}; give a `function` "
                "that returns such a tensor"
            )

    def n_output(self, outputs: Tensor) -> int:
        """Number of logits."""
        return math.prod(outputs.shape[1:])

    def n_directions(self, outputs: Tensor, targets: Any = None) -> int:
        """One direction for each logit."""
        return math.prod(outputs.shape[1:])

    def directions(self, outputs: Tensor, targets: Any, chosen: slice) -> Tensor:
        """sqrt(sigma(f_k) sigma(-f_k)) e_k for the chosen logits k, shape (k, n, ...)."""
        log_sigmoid = torch.nn.functional.logsigmoid
        roots = ((log_sigmoid(outputs) + log_sigmoid(-outputs)) / 2).exp()
        units = torch.eye(math.prod(outputs.shape[1:]), dtype=outputs.dtype, device=outputs.device)[chosen]
        return units.view(-1, 1, *outputs.shape[1:]) * roots

    def metric(self, outputs: Tensor, u: Tensor, targets: Any = None) -> Tensor:
        """sigma(f) sigma(-f) u, entry by entry."""
        return outputs.sigmoid() * (-outputs).sigmoid() * u

    def sample(self, outputs: Tensor, uniform: Tensor) -> Tensor:
        """Zeros and ones, of the outputs' shape."""
        return (uniform < outputs.double().sigmoid()).to(outputs.dtype)

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The residual y - sigma(f)."""
        if y.shape != outputs.shape:
            raise ShapeError(
                f"variant '{self.name}' expects targets of the outputs' shape {tuple(outputs.shape)}, got {tuple(y.shape)}"
            )
        return y.to(outputs.dtype) - outputs.sigmoid()


class BinaryLogits(MultilabelLogits):
    """Two classes told apart by one logit: p(y = 1 | x) = sigmoid(f(x)) with outputs (n,) or (n, 1).

    Example:
        >>> BinaryLogits().metric(torch.zeros(2), torch.ones(2))
        tensor([0.2500, 0.2500])
    """

    name = "classif_binary_logits"

    def check(self, outputs: Tensor) -> None:
        """Outputs are (n,) or (n, 1).

        Raises:
            ShapeError: They are not.
        """
        if outputs.ndim not in (1, 2) or math.prod(outputs.shape[1:]) > 1:
            raise ShapeError(
                f"variant '{self.name}' expects one logit for each example, got outputs of shape {tuple(outputs.shape)}; "
                "'classif_logits' takes a logit for each class, 'multilabel_logits' one for each label"
            )

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The residual y - sigma(f), for targets (n,) or (n, 1)."""
        return super().score(outputs, y.view(outputs.shape) if y.numel() == outputs.numel() else y)
