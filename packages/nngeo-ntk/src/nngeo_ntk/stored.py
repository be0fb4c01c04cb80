"""StoredKernel: kernels whose numbers are stored, as square blocks along the diagonal."""

from abc import abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from nngeo_core.errors import NonFiniteError, ShapeError
from nngeo_core.jacobians.contraction import GramMethod, Pairing
from nngeo_core.linear_algebra.damping import check_definite, factorize
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.linear_algebra.symmetric import eigh
from nngeo_core.matrices.fmat import FMat
from nngeo_core.matrices.kernel_spectrum import KernelSpectrum
from nngeo_core.matrices.memo import Memo
from nngeo_core.sweep.generator import Generator
from nngeo_ntk.buffers import Buffer
from nngeo_ntk.shared import shared_kernel

__all__ = ["StoredKernel"]

Self = TypeVar("Self", bound="StoredKernel")
T = TypeVar("T")


class StoredKernel(FMat):
    """A kernel that is zero outside of b blocks on its diagonal, and stores those: one block, or one for each output.

    Args:
        generator: Differentiates the model, for the identity as likelihood; needed with `examples`.
        data: The stored numbers, in the form that the representation documents.
        examples: One batch or a loader, read once, from which the generator computes the data.
        others: The same for the columns of a cross kernel K(examples, others).
        method: Forces how layers are contracted: "positions", "gradients" or "products" (see
            `nngeo_core.jacobians.contraction.gram_costs`); None takes the cheapest order of each layer.
        out: Where the data are computed, a tensor or a numpy memory map of their shape.
        progress: Whether to show a progress bar.
        symmetric: Whether `data` are those of one set of examples; None if they are as wide as high.

    Raises:
        ValueError: Both or neither of `data` and `examples` are given, or there are no examples.
        ShapeError: The data, or the buffer, have another shape than the representation documents.
        NonFiniteError: The data have NaN or infinite entries.
    """

    pairing: ClassVar[Pairing]

    def __init__(
        self,
        generator: Generator | None = None,
        data: Tensor | None = None,
        examples: Any = None,
        others: Any = None,
        *,
        method: GramMethod | None = None,
        out: Buffer | None = None,
        progress: bool = False,
        symmetric: bool | None = None,
    ) -> None:
        if (data is None) == (examples is None):
            given = "both" if data is not None else "neither"
            raise ValueError(f"give either `data` or `examples` to {type(self).__name__}; got {given}")
        if data is not None:
            self._check(data)
        elif generator is not None:
            data = shared_kernel(generator, examples, others, self.pairing, method, out, progress)
            symmetric = others is None
        else:
            raise ValueError(f"{type(self).__name__} needs a `generator` to compute its data from `examples`; got none")
        self.generator, self.data = generator, data
        square = self.size()[1] == self.size()[3]
        if symmetric and not square:
            raise ShapeError(f"a kernel of size {self.size()} is not symmetric; leave out symmetric=True")
        self._symmetric = square if symmetric is None else symmetric
        self._memo = Memo()

    def _check(self, data: Tensor) -> None:
        if not isinstance(data, Tensor) or not self._fits(data.shape):
            given = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
            raise ShapeError(f"the data of a {type(self).__name__} are a tensor of shape {self._form}, got {given}")
        if not all_finite(data):
            raise NonFiniteError(f"the data of a {type(self).__name__} have NaN or infinite entries")

    _form: ClassVar[str]
    """The shape of the data, for messages."""

    @abstractmethod
    def _fits(self, shape: torch.Size) -> bool:
        """Whether data may have this shape."""

    @abstractmethod
    def _blocks(self) -> Tensor:
        """The data as blocks, shape (b, w, w), or (b, w1, w2) of a cross kernel."""

    @abstractmethod
    def _with_blocks(self: Self, blocks: Tensor) -> Self:
        """A kernel of this representation with other blocks of the same shape."""

    @property
    def symmetric(self) -> bool:
        """False for a cross kernel."""
        return self._symmetric

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the stored numbers."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        """The device of the stored numbers."""
        return self.data.device

    def _rows(self, u: Tensor) -> Tensor:
        """u (c, n) as the part that each block meets, shape (b, w, 1)."""
        return u.reshape(len(self._blocks()), -1, 1)

    def _mv(self, u: Tensor) -> Tensor:
        return (self._blocks() @ self._rows(u)).view(self.size()[:2])

    def _trace(self) -> Tensor:
        return self._blocks().diagonal(dim1=1, dim2=2).sum()

    def _norm(self) -> Tensor:
        return euclidean_norm(self.data)

    def _solve(self, u: Tensor, regul: float) -> Tensor:
        solver = self._cached("solver", lambda: factorize(self._blocks(), regul, True, "the kernel"), regul)
        return solver(self._rows(u)).view_as(u)

    def _inverse(self: Self, regul: float) -> Self:
        blocks = self._blocks()
        identity = torch.eye(blocks.shape[1], dtype=self.dtype, device=self.device).expand_as(blocks)
        inverse = factorize(blocks, regul, True, "the kernel")(identity)
        return self._with_blocks((inverse + inverse.mT) / 2)

    def _eigh(self) -> tuple[Tensor, Tensor]:
        return self._cached("eigh", lambda: eigh(self._blocks()))

    def _eigendecomposition(self, k: int | None) -> KernelSpectrum:
        values, vectors = self._eigh()  # (b, w) and (b, w, w)
        order = values.flatten().argsort()
        order = order if k is None else order[len(order) - k :]
        b, w = values.shape
        block, place = order // w, order % w
        rows = vectors.new_zeros(len(order), b, w)
        rows[torch.arange(len(order), device=rows.device), block] = vectors[block, :, place]
        return KernelSpectrum(values.flatten()[order], rows.view(-1, *self.size()[:2]))

    def _logdet(self, regul: float) -> Tensor:
        damped = self._eigh()[0] + regul
        check_definite(damped, regul, "the kernel")
        return damped.log().sum()

    def _add(self: Self, other: Self) -> Self:
        return self._with_data(self.data + other.data, self.symmetric and other.symmetric)

    def _scaled(self: Self, scalar: float | Tensor) -> Self:
        return self._with_data(self.data * scalar)

    def _centered(self: Self) -> Self:
        c, n, _, _ = self.size()
        blocks = self._blocks()
        parts = blocks.reshape(len(blocks), blocks.shape[1] // n, n, -1, n)
        rows = parts - parts.mean(2, keepdim=True)
        return self._with_blocks((rows - rows.mean(4, keepdim=True)).view_as(blocks))

    def _with_data(self: Self, data: Tensor, symmetric: bool | None = None) -> Self:
        return type(self)(self.generator, data, symmetric=self.symmetric if symmetric is None else symmetric)

    def _cached(self, key: Hashable, make: Callable[[], T], of: Hashable = None) -> T:
        """What `make` returns, kept until the data are replaced or changed; made anew where it is to be differentiated."""
        if torch.is_grad_enabled() and self.data.requires_grad:
            return make()
        return self._memo.get([self.data], key, make, of)
