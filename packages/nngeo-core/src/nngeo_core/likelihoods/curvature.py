"""Metrics given as matrices on the outputs: the Hessian of a loss, or any of the user's."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import NonFiniteError, ShapeError, UnsupportedOperationError
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.empirical import Loss, per_example
from nngeo_core.likelihoods.wrapped import Wrapped

__all__ = ["LossCurvature", "MatrixMetric", "OutputMetric"]


class MatrixMetric(Wrapped):
    """A metric known as a symmetric matrix (n, c, c) on the flattened outputs; its directions are scaled eigenvectors.

    Where an eigenvalue is negative beyond rounding, as many directions again follow, which enter with a minus sign:
    L = V_+ V_+^T - V_- V_-^T.
    """

    @abstractmethod
    def matrix(self, outputs: Tensor, targets: Any) -> Tensor:
        """L of each example, shape (n, c, c)."""

    def n_directions(self, outputs: Tensor, targets: Any = None) -> int:
        """C, or twice as many where L is indefinite."""
        return math.prod(outputs.shape[1:]) + self.n_negative(outputs, targets)

    def n_negative(self, outputs: Tensor, targets: Any = None) -> int:
        """C where some eigenvalue is negative, else none."""
        values, _ = self._spectrum(outputs, targets)
        return values.shape[1] if bool((values < 0).any()) else 0

    def directions(self, outputs: Tensor, targets: Any, chosen: slice) -> Tensor:
        """sqrt(|w_k|) u_k, those of the positive eigenvalues first, shape (k, *outputs)."""
        values, vectors = self._spectrum(outputs, targets)
        roots = torch.cat((values.clamp(min=0), (-values).clamp(min=0)), 1).sqrt()[:, chosen]
        vectors = torch.cat((vectors, vectors), 2)[:, :, chosen]
        return (vectors * roots.unsqueeze(1)).movedim(2, 0).reshape(-1, *outputs.shape)

    def metric(self, outputs: Tensor, u: Tensor, targets: Any = None) -> Tensor:
        """L u, of the outputs' shape."""
        return torch.einsum("nab,nb->na", self.matrix(outputs, targets), u.unsqueeze(-1).flatten(1)).view_as(u)

    def _spectrum(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Eigenvalues (n, c), those within rounding of zero set to zero, and eigenvectors (n, c, c)."""
        matrix = self.matrix(outputs, targets)
        if not matrix.isfinite().all():
            raise NonFiniteError(f"the metric that {type(self).__name__} puts on the outputs has a NaN or an infinity")
        values, vectors = torch.linalg.eigh(((matrix + matrix.mT) / 2).double())
        cutoff = values.abs().amax(1, keepdim=True) * values.shape[1] * torch.finfo(outputs.dtype).eps
        return torch.where(values.abs() <= cutoff, 0, values).to(outputs.dtype), vectors.to(outputs.dtype)


class LossCurvature(MatrixMetric):
    """L_i is the Hessian of example i's loss with respect to its outputs: generalized Gauss-Newton (Schraudolph 2002).

    Args:
        inner: What the outputs mean.
        loss: Maps outputs and targets to one loss for each example, shape (n,), twice differentiable in the outputs.
    """

    name = "loss_curvature"

    def __init__(self, inner: Likelihood, loss: Loss) -> None:
        super().__init__(inner)
        self.loss = loss

    def targets(self, examples: Any) -> Any:
        """The targets of the batch."""
        return self.observed(examples)

    def matrix(self, outputs: Tensor, targets: Any) -> Tensor:
        """The Hessians, one backward pass for each of the c columns."""
        c = math.prod(outputs.shape[1:])
        units = torch.eye(c, dtype=outputs.dtype, device=outputs.device)
        columns = [self.metric(outputs, unit.view(1, *outputs.shape[1:]).expand_as(outputs), targets) for unit in units]
        return torch.stack([column.unsqueeze(-1).flatten(1) for column in columns], 2)

    def metric(self, outputs: Tensor, u: Tensor, targets: Any = None) -> Tensor:
        """The Hessian times u by two backward passes through the loss alone."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            losses = per_example(self.loss, leaf, targets)
            (gradient,) = torch.autograd.grad(
                losses.sum(), leaf, create_graph=True, allow_unused=True, materialize_grads=True
            )
            if not gradient.requires_grad:
                return torch.zeros_like(u)
            try:
                (product,) = torch.autograd.grad(gradient, leaf, u, allow_unused=True, materialize_grads=True)
            except RuntimeError as error:
                raise UnsupportedOperationError(
                    f"the loss has no second derivative in torch ({str(error).partition(chr(10))[0]}); write it with "
                    "elementary operations"
                ) from error
        return product.detach()


class OutputMetric(MatrixMetric):
    """Any metric of the user's on the outputs: pull it back to the parameters, F = (1/n) sum_i J_i^T L(f(x_i)) J_i.

    Args:
        function: Maps outputs (n, ...) to symmetric matrices (n, c, c) on the flattened outputs.
        inner: What the outputs mean, for their checks.

    Example:
        >>> from nngeo_core.likelihoods.gaussian import GaussianLikelihood
        >>> halves = OutputMetric(lambda outputs: torch.eye(2).expand(len(outputs), 2, 2) / 2, GaussianLikelihood())
        >>> halves.metric(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([[0.5000, 0.5000]])
    """

    name = "output_metric"

    def __init__(self, function: Callable[[Tensor], Tensor], inner: Likelihood) -> None:
        super().__init__(inner)
        self.function = function

    def matrix(self, outputs: Tensor, targets: Any) -> Tensor:
        """What the function returns.

        Raises:
            ShapeError: It is not (n, c, c).
        """
        found, c = self.function(outputs), math.prod(outputs.shape[1:])
        if found.shape != (len(outputs), c, c):
            raise ShapeError(
                f"the metric has shape {tuple(found.shape)}, expected (n, c, c) = {(len(outputs), c, c)} for outputs of shape "
                f"{tuple(outputs.shape)}"
            )
        return found.to(outputs)
