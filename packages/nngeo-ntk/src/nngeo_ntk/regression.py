"""Kernel regression with a tangent kernel."""

from torch import Tensor

from nngeo_core.conventions import DEFAULT_REGUL
from nngeo_core.matrices.fmat import FMat
from nngeo_core.vectors.fvector import FVector
from nngeo_ntk.over_outputs import check_cross, check_outputs, over_outputs

__all__ = ["KernelRegression"]


class KernelRegression:
    """Kernel ridge regression: f(x) = K(x, X) (K(X, X) + regul I)^-1 y (Saunders, Gammerman & Vovk 1998).

    Args:
        kernel: K(X, X) of the n training examples. One of examples alone ("trace") serves every output.
        targets: y, shape (c, n); for the correction of a model's outputs, what is left of them.
        regul: The r of K + r I.

    Raises:
        ShapeError: The targets do not fit the kernel.
        NotPositiveDefiniteError: K + regul I is singular to working precision.

    Example:
        >>> import torch
        >>> from nngeo_ntk import FMatTrace
        >>> fit = KernelRegression(FMatTrace(data=torch.eye(2)), FVector(torch.tensor([[1.0, 2.0]])), regul=1.0)
        >>> fit.predict(FMatTrace(data=torch.tensor([[0.0, 1.0]]))).vector_repr
        tensor([[1.]])
    """

    def __init__(self, kernel: FMat, targets: FVector, regul: float | Tensor = DEFAULT_REGUL) -> None:
        check_outputs(kernel, targets, "targets")
        self.kernel = kernel
        self.dual = over_outputs(kernel, targets, lambda u: kernel.solve(u, regul))

    def predict(self, cross: FMat) -> FVector:
        """f at other examples, shape (c, n1).

        Args:
            cross: K(X1, X), of the representation of the training kernel: `GramMatrix(model, X1, ..., loader2=X)`.

        Raises:
            ShapeError: Its columns are not the training examples.
            TypeError: Its entries are of other outputs than the kernel's.
        """
        check_cross(self.kernel, cross)
        return over_outputs(cross, self.dual, cross.mv)
