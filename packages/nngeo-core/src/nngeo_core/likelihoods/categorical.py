"""Categorical likelihood over classes, given logits."""

import torch
from torch import Tensor

from nngeo_core.errors import ShapeError
from nngeo_core.likelihoods.base import Likelihood

__all__ = ["ClassifLogits"]


class ClassifLogits(Likelihood):
    """Softmax classification: p(y | x) = softmax(f(x))_y with outputs (n, classes).

    The metric is L = diag(p) - p p^T, whose exact square root sqrt(p_k) (e_k - p), k = 1 ... classes, is never factored
    numerically: it stays accurate for confident logits (Martens 2020, section 9.2, for the Fisher of the softmax).

    Example:
        >>> import torch
        >>> outputs = torch.zeros(1, 2)
        >>> ClassifLogits().metric(outputs, torch.tensor([[1.0, 0.0]]))
        tensor([[ 0.2500, -0.2500]])
    """

    name = "classif_logits"

    def check(self, outputs: Tensor) -> None:
        """Outputs are (n, classes).

        Raises:
            ShapeError: They are not.
        """
        if outputs.ndim != 2:
            raise ShapeError(
                f"variant 'classif_logits' expects outputs of shape (n, classes), got {tuple(outputs.shape)}; "
                "give a `function` that returns such a tensor"
            )

    def n_output(self, outputs: Tensor) -> int:
        """Number of classes."""
        return outputs.shape[1]

    def n_directions(self, outputs: Tensor) -> int:
        """One direction for each class."""
        return outputs.shape[1]

    def directions(self, outputs: Tensor, targets: Tensor | None, chosen: slice) -> Tensor:
        """sqrt(p_k) (e_k - p) for the chosen classes k, shape (k, n, classes)."""
        log_p = torch.log_softmax(outputs, 1)
        columns = -log_p.exp().expand(chosen.stop - chosen.start, -1, -1)
        classes = torch.arange(chosen.start, chosen.stop, device=outputs.device)
        columns = columns + torch.nn.functional.one_hot(classes, outputs.shape[1]).to(columns.dtype).unsqueeze(1)
        return columns * (log_p[:, chosen] / 2).exp().T.unsqueeze(2)

    def metric(self, outputs: Tensor, u: Tensor) -> Tensor:
        """p * (u - p.u), shape (n, classes); u is taken relative to the likeliest class, where u - p.u would cancel."""
        p = torch.softmax(outputs, 1)
        u = u - u.gather(1, outputs.argmax(1, keepdim=True))
        return p * (u - (p * u).sum(1, keepdim=True))
