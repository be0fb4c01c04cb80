"""The posterior of a Gaussian process whose covariance is a tangent kernel."""

import math

from torch import Tensor

from nngeo_core.conventions import checked_regul
from nngeo_core.linear_algebra.damping import factorize
from nngeo_core.matrices.fmat import FMat
from nngeo_core.vectors.fvector import FVector
from nngeo_ntk.over_outputs import check_cross, check_outputs, over_outputs
from nngeo_ntk.stored import StoredKernel

__all__ = ["GaussianProcess"]


class GaussianProcess:
    """f ~ GP(m, K) with observations y = f(X) + noise of variance sigma^2 (Rasmussen & Williams 2006, section 2.2).

    With m the outputs of the model and K its tangent kernel it is the linearized model under a standard normal prior on the
    change of its parameters: a Laplace approximation in function space (Khan et al. 2019).

    Args:
        kernel: K(X, X) of the training examples, with stored entries.
        targets: y, shape (c, n).
        noise: sigma^2.
        prior_mean: m(X), shape (c, n); None for zero.

    Raises:
        TypeError: The kernel stores no entries.
        ValueError: `noise` is negative.
        ShapeError: Targets or mean do not fit the kernel.
        NotPositiveDefiniteError: K + sigma^2 I is singular to working precision.

    Example:
        >>> import torch
        >>> from nngeo_ntk import FMatTrace
        >>> process = GaussianProcess(FMatTrace(data=torch.ones(1, 1)), FVector(torch.ones(1, 1)), noise=1.0)
        >>> cross = test = FMatTrace(data=torch.ones(1, 1))
        >>> process.mean(cross).vector_repr, process.covariance(cross, test).data
        (tensor([[0.5000]]), tensor([[0.5000]]))
    """

    def __init__(
        self, kernel: StoredKernel, targets: FVector, noise: float | Tensor, prior_mean: FVector | None = None
    ) -> None:
        if not isinstance(kernel, StoredKernel):
            raise TypeError(
                f"a posterior needs stored entries, got {type(kernel).__name__}; compute the kernel as 'dense'"
            )
        check_outputs(kernel, targets, "targets")
        if prior_mean is not None:
            check_outputs(kernel, prior_mean, "prior_mean")
        self.kernel, self.noise = _stored(kernel), checked_regul(noise)
        self._residual = targets if prior_mean is None else targets - prior_mean
        self._dual = over_outputs(kernel, self._residual, lambda u: kernel.solve(u, self.noise))

    def mean(self, cross: FMat, prior_mean: FVector | None = None) -> FVector:
        """m(X1) + K(X1, X) (K + sigma^2 I)^-1 (y - m(X)), shape (c, n1).

        Args:
            cross: K(X1, X).
            prior_mean: m(X1), shape (c, n1); None for zero.

        Raises:
            ShapeError: The columns of the cross kernel are not the training examples.
            TypeError: Its entries are of other outputs than the kernel's.
        """
        check_cross(self.kernel, cross)
        change = over_outputs(cross, self._dual, cross.mv)
        return change if prior_mean is None else prior_mean + change

    def covariance(self, cross: FMat, test: FMat) -> StoredKernel:
        """K(X1, X1) - K(X1, X) (K + sigma^2 I)^-1 K(X, X1), of f without noise, in the kernel's representation.

        Args:
            cross: K(X1, X).
            test: K(X1, X1).

        Raises:
            ShapeError: The columns of the cross kernel are not the training examples, or its rows not those of the test.
            TypeError: The entries are of other outputs than the kernel's, or not stored.
        """
        check_cross(self.kernel, cross)
        check_cross(test, cross, "rows")
        rows, prior = _stored(cross)._blocks(), _stored(test)
        solved = factorize(self.kernel._blocks(), self.noise, True, "the kernel")(rows.mT)
        blocks = prior._blocks() - rows @ solved
        return prior._with_blocks((blocks + blocks.mT) / 2)

    def log_marginal_likelihood(self) -> Tensor:
        """log p(y | X) = -1/2 r^T (K + sigma^2 I)^-1 r - 1/2 log det(K + sigma^2 I) - N/2 log(2 pi), r = y - m(X); 0-dim.

        N counts all outputs; a kernel of examples alone stands for as many independent outputs as there are targets.
        """
        copies = self._residual.size()[0] // self.kernel.size()[0]
        fit = self._residual @ self._dual
        complexity = copies * self.kernel.logdet(self.noise)
        return -(fit + complexity + self._residual.get_flat_representation().numel() * math.log(2 * math.pi)) / 2


def _stored(kernel: FMat) -> StoredKernel:
    if not isinstance(kernel, StoredKernel):
        raise TypeError(f"a posterior needs stored entries, got {type(kernel).__name__}; compute the kernel as 'dense'")
    return kernel
