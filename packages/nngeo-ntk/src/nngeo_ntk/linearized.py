"""The linearized model under gradient flow."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nngeo_core.linear_algebra.spectrum import cutoff, reciprocals
from nngeo_core.matrices.fmat import FMat
from nngeo_core.vectors.fvector import FVector
from nngeo_ntk.over_outputs import check_cross, check_outputs, over_outputs

__all__ = ["LinearizedModel"]

_SHORT = 0.1
"""Times, in units of one over the cut-off of eigenvalues, in which what is left of zero ones by rounding does not count."""


class LinearizedModel:
    """Predictions of f(x, w0) + J(x) (w - w0) while gradient flow fits it to targets, in closed form.

    For the loss 1/2 sum_i |f(x_i) - y_i|^2, summed over examples and outputs, and dw/dt = -gradient, the outputs are
    f_t(x) = f_0(x) - K(x, X) K^-1 (I - exp(-t K)) (f_0(X) - y) (Jacot, Gabriel & Hongler 2018; Lee et al. 2019). t steps of
    gradient descent with a small learning rate a are the time a t; for a loss averaged over n examples, a t / n. What
    lies where K is zero is never learned. Eigenvalues below c n eps times the largest count as zero once t is a tenth of one
    over that cut-off, or infinite: from then on nothing would be left of them but rounding, which t multiplies.

    Args:
        kernel: K(X, X) of the training examples.
        outputs: f_0(X), the model's outputs there, shape (c, n).
        targets: y, shape (c, n).

    Raises:
        ShapeError: Outputs or targets do not fit the kernel.

    Example:
        >>> from nngeo_ntk import FMatTrace
        >>> zero, one = FVector(torch.zeros(1, 1)), FVector(torch.ones(1, 1))
        >>> linearized = LinearizedModel(FMatTrace(data=torch.ones(1, 1)), outputs=zero, targets=one)
        >>> linearized.fit(time=1.0).vector_repr
        tensor([[0.6321]])
    """

    def __init__(self, kernel: FMat, outputs: FVector, targets: FVector) -> None:
        check_outputs(kernel, outputs, "outputs")
        check_outputs(kernel, targets, "targets")
        self.kernel, self.outputs, self.targets = kernel, outputs, targets
        self._spectrum = kernel.eigendecomposition()

    def fit(self, time: float = math.inf) -> FVector:
        """The outputs at the training examples at a time, shape (c, n); at convergence by default.

        Raises:
            ValueError: The time is negative.
        """
        change = self._moved(time, lambda values, duals: values * duals)
        return self.outputs - change

    def predict(self, cross: FMat, outputs: FVector, time: float = math.inf) -> FVector:
        """The outputs at other examples at a time, shape (c, n1).

        Args:
            cross: K(X1, X), of the representation of the training kernel: `GramMatrix(model, X1, ..., loader2=X)`.
            outputs: f_0(X1), shape (c, n1).
            time: t.

        Raises:
            ValueError: The time is negative.
            ShapeError: The sizes do not fit.
            TypeError: The cross kernel's entries are of other outputs than the kernel's.
        """
        check_cross(self.kernel, cross)
        check_outputs(cross, outputs, "outputs")
        duals = self._moved(time, lambda values, duals: duals)
        return outputs - over_outputs(cross, duals, cross.mv)

    def _moved(self, time: float, weigh: Callable[[Tensor, Tensor], Tensor]) -> FVector:
        """sum_k weight_k u_k (u_k . (f_0 - y)), with weights made of the eigenvalues and of (1 - exp(-t w)) / w."""
        if not time >= 0:
            raise ValueError(f"time is a number >= 0, math.inf for convergence; got {time}")
        values = self._spectrum.values.clamp(min=0)
        weights = weigh(values, _integrated_decay(values, time))
        apply = self._spectrum.apply
        return over_outputs(self.kernel, self.outputs - self.targets, lambda u: FVector(apply(weights, u.vector_repr)))


def _integrated_decay(values: Tensor, time: float) -> Tensor:
    """(1 - exp(-t w)) / w, the integral of exp(-s w) from 0 to t: t at w = 0, or zero if t is infinite.

    It is zero too for eigenvalues within rounding of zero when t is so long that rounding would count: t multiplies it.
    """
    if math.isinf(time):
        return reciprocals(values, len(values))
    time = min(time, torch.finfo(values.dtype).max)
    positive, zero = values > 0, cutoff(values, len(values))
    found = torch.where(positive, -torch.expm1(-time * values) / torch.where(positive, values, 1), time)
    return torch.where((values > zero) | (time * zero <= _SHORT), found, 0)
