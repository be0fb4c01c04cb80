"""FMat: a (c n) x (c n) matrix in function space, whatever its representation."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

import torch
from torch import Tensor

from nngeo_core.conventions import DEFAULT_REGUL, checked_regul
from nngeo_core.errors import ShapeError, UnsupportedOperationError
from nngeo_core.linear_algebra.precision import full_precision
from nngeo_core.matrices.files import Storable
from nngeo_core.matrices.kernel_spectrum import KernelSpectrum
from nngeo_core.parallel.group import Group
from nngeo_core.sweep.processes import telling
from nngeo_core.vectors.fvector import FVector

__all__ = ["FMat"]

Self = TypeVar("Self", bound="FMat")


class FMat(Storable):
    """A kernel K on function space: a Gram matrix of tangent features, logically of shape (c, n, c, n).

    It sums over parameters and is not averaged over anything. A cross kernel K(X1, X2), logically (c, n1, c, n2), has `mv`,
    `norm`, sums and multiples; what needs a symmetric matrix then raises `UnsupportedOperationError`.

    A representation derives from this class and implements the private methods, which receive checked tensors (c, n).
    """

    kind: ClassVar[str] = "fmat"
    name: ClassVar[str]

    @abstractmethod
    def size(self) -> tuple[int, int, int, int]:
        """(c, n, c, n), or (c, n1, c, n2) of a cross kernel, whatever the size in memory."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the entries."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the entries."""

    @property
    def symmetric(self) -> bool:
        """False for a cross kernel."""
        return True

    @property
    def _group(self) -> Group | None:
        """The processes that compute each product together; None where every one has the numbers for it."""
        return None

    def mv(self, u: FVector) -> FVector:
        """The product K u: shape (c, n), or (c, n1) for u of (c, n2) where K is a cross kernel.

        Raises:
            ShapeError: u is not (c, n).
        """
        with telling(self._group, "a product"):
            checked = self._checked(u)
            with full_precision(self.device):
                return FVector(self._mv(checked))

    def __matmul__(self, u: FVector) -> FVector:
        """`K @ u` is `K.mv(u)`."""
        return self.mv(u)

    @abstractmethod
    def _mv(self, u: Tensor) -> Tensor:
        """K u for u (c, n)."""

    def vTMv(self, u: FVector) -> Tensor:
        """The quadratic form u^T K u, 0-dimensional.

        Raises:
            ShapeError: u is not (c, n).
            UnsupportedOperationError: K is a cross kernel.
        """
        with telling(self._group, "a quadratic form"):
            self._check_symmetric("a quadratic form")
            checked = self._checked(u)
            with full_precision(self.device):
                return self._quadratic_form(checked)

    def _quadratic_form(self, u: Tensor) -> Tensor:
        """u^T K u for u (c, n)."""
        return (u * self._mv(u)).sum()

    def trace(self) -> Tensor:
        """The sum over outputs and examples of the diagonal, 0-dimensional.

        Raises:
            UnsupportedOperationError: K is a cross kernel.
        """
        self._check_symmetric("a trace")
        with full_precision(self.device):
            return self._trace()

    @abstractmethod
    def _trace(self) -> Tensor:
        """The trace."""

    def norm(self) -> Tensor:
        """The Frobenius norm: the root of the sum of squares of all entries, 0-dimensional."""
        with full_precision(self.device):
            return self._norm()

    @abstractmethod
    def _norm(self) -> Tensor:
        """The Frobenius norm."""

    def solve(self, u: FVector, regul: float | Tensor = DEFAULT_REGUL) -> FVector:
        """(K + regul I)^-1 u.

        Args:
            u: Shape (c, n).
            regul: The damping r.

        Raises:
            ValueError: `regul` is negative or no single number.
            ShapeError: u is not (c, n).
            NotPositiveDefiniteError: K + regul I is singular to working precision.
            UnsupportedOperationError: K is a cross kernel.
        """
        with telling(self._group, "a solution"):
            self._check_symmetric("a linear solve")
            checked, damping = self._checked(u), checked_regul(regul)
            with full_precision(self.device):
                return FVector(self._solve(checked, damping))

    @abstractmethod
    def _solve(self, u: Tensor, regul: float) -> Tensor:
        """(K + regul I)^-1 u for u (c, n)."""

    def inverse(self: Self, regul: float | Tensor = DEFAULT_REGUL) -> Self:
        """(K + regul I)^-1 in the same representation.

        Raises:
            ValueError: `regul` is negative or no single number.
            NotPositiveDefiniteError: K + regul I is singular to working precision.
            UnsupportedOperationError: K is a cross kernel, or its inverse is not of this representation.
        """
        self._check_symmetric("an inverse")
        with full_precision(self.device):
            return self._inverse(checked_regul(regul))

    def _inverse(self: Self, regul: float) -> Self:
        self._unsupported("an inverse", "solve(u, regul) gives its products")

    def eigendecomposition(self, k: int | None = None) -> KernelSpectrum:
        """Eigenvalues, ascending, and orthonormal eigenvectors.

        Args:
            k: Take the k largest eigenvalues; None takes all c n.

        Raises:
            ValueError: k is not between 1 and c n.
            UnsupportedOperationError: K is a cross kernel.
        """
        with telling(self._group, "an eigendecomposition"):
            self._check_symmetric("an eigendecomposition")
            c, n, _, _ = self.size()
            if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= c * n):
                raise ValueError(f"k is how many eigenvalues to take, 1 to {c * n}; got {k!r}")
            with full_precision(self.device):
                return self._eigendecomposition(k)

    @abstractmethod
    def _eigendecomposition(self, k: int | None) -> KernelSpectrum:
        """The eigenvalues, or the k largest of them, with their eigenvectors."""

    def logdet(self, regul: float | Tensor = DEFAULT_REGUL) -> Tensor:
        """log det(K + regul I), 0-dimensional.

        Raises:
            ValueError: `regul` is negative or no single number.
            NotPositiveDefiniteError: K + regul I is not positive definite to working precision.
            UnsupportedOperationError: K is a cross kernel, or stores nothing that has a determinant.
        """
        self._check_symmetric("a log-determinant")
        with full_precision(self.device):
            return self._logdet(checked_regul(regul))

    def _logdet(self, regul: float) -> Tensor:
        self._unsupported("a log-determinant", "compute the kernel as 'dense' or 'blockdiag'")

    def centered(self: Self) -> Self:
        """H K H with H = I - 1 1^T / n for each output: the kernel of features whose mean over examples is taken away.

        Raises:
            UnsupportedOperationError: K is a cross kernel.
        """
        self._check_symmetric("a centred kernel")
        with full_precision(self.device):
            return self._centered()

    @abstractmethod
    def _centered(self: Self) -> Self:
        """H K H."""

    def __add__(self: Self, other: Any) -> Self:
        """K + K' of one representation and size."""
        return self._add(self._checked_partner(other, "the sum"))

    def __sub__(self: Self, other: Any) -> Self:
        """K - K' of one representation and size."""
        return self._add(self._checked_partner(other, "the difference")._scaled(-1.0))

    @abstractmethod
    def _add(self: Self, other: Self) -> Self:
        """K + K'."""

    def __mul__(self: Self, scalar: float | Tensor) -> Self:
        """The multiple a K, of a number or a 0-dimensional tensor."""
        if not isinstance(scalar, int | float) and not (isinstance(scalar, Tensor) and scalar.ndim == 0):
            raise TypeError(
                f"a {type(self).__name__} is multiplied by a number or a 0-dimensional tensor, got "
                f"{type(scalar).__name__}; use mv for vectors"
            )
        return self._scaled(scalar)

    __rmul__ = __mul__

    def __truediv__(self: Self, scalar: float | Tensor) -> Self:
        """The multiple K / a."""
        return self * (1 / scalar)

    def __neg__(self: Self) -> Self:
        """The multiple -K."""
        return self * -1.0

    @abstractmethod
    def _scaled(self: Self, scalar: float | Tensor) -> Self:
        """The multiple a K."""

    @abstractmethod
    def get_dense_tensor(self) -> Tensor:
        """All entries, shape (c, n, c, n), or (c, n1, c, n2) of a cross kernel."""

    def __repr__(self) -> str:
        """Representation, size, dtype and device."""
        sizes = " x ".join(map(str, self.size()))
        return f"{type(self).__name__}({sizes}, {self.dtype}, {self.device})"

    def _description(self) -> dict[str, Any]:
        return {"symmetric": self.symmetric}

    @classmethod
    def _restored(cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> Any:
        return cls(data=tensors["data"], symmetric=description["symmetric"])  # type: ignore[call-arg]

    def _checked(self, u: FVector) -> Tensor:
        """The coordinates of u (c, n) in this kernel's dtype."""
        if not isinstance(u, FVector):
            raise TypeError(f"expected an FVector, got {type(u).__name__}; FVector(vector_repr=tensor) makes one")
        if tuple(u.vector_repr.shape) != self.size()[2:]:
            raise ShapeError(f"expected an FVector of shape {self.size()[2:]}, got {tuple(u.vector_repr.shape)}")
        if torch.promote_types(u.vector_repr.dtype, self.dtype) != self.dtype:
            raise TypeError(
                f"the vector is {u.vector_repr.dtype} and the kernel {self.dtype}; use u.to(dtype={self.dtype}), or "
                "compute the kernel from a model in the vector's dtype"
            )
        return u.vector_repr.to(self.dtype)

    def _checked_partner(self: Self, other: Any, result: str) -> Self:
        if not isinstance(other, FMat):
            raise TypeError(f"{result} of {type(self).__name__} with {type(other).__name__}: expected another kernel")
        if type(other) is not type(self):
            self._unsupported(f"{result} with {type(other).__name__}", "compute both kernels in one representation")
        if other.size() != self.size():
            raise ShapeError(f"{result} needs two kernels of one size, got {self.size()} and {other.size()}")
        return other

    def _check_symmetric(self, what: str) -> None:
        if not self.symmetric:
            raise UnsupportedOperationError(
                f"{what} of a cross kernel between {self.size()[1]} and {self.size()[3]} examples is not defined; compute the "
                "kernel of one set of examples, without loader2"
            )

    def _unsupported(self, what: str, instead: str) -> NoReturn:
        raise UnsupportedOperationError(f"{what} is not a {type(self).__name__}; {instead}")
