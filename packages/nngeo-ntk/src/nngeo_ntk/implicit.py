"""FMatImplicit: a kernel known by its products."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nngeo_core.jacobians.contraction import GramMethod
from nngeo_core.linear_algebra.conjugate_gradients import conjugate_gradients
from nngeo_core.linear_algebra.lanczos import leading_eigenpairs
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.matrices.fmat import FMat
from nngeo_core.matrices.kernel_spectrum import KernelSpectrum
from nngeo_core.parallel.group import Group
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.processes import together
from nngeo_core.sweep.untouched import undisturbed
from nngeo_core.vectors.pvector import PVector
from nngeo_ntk.buffers import Buffer
from nngeo_ntk.implicit_jacobian import common_outputs, product_dtype, pull_back, push_forward
from nngeo_ntk.kernels import kernel_norm
from nngeo_ntk.recorded import Recorded
from nngeo_ntk.shared import shared_kernel

__all__ = ["FMatImplicit", "KernelTerm"]


@dataclass(frozen=True, eq=False)
class KernelTerm:
    """One kernel of a linear combination.

    Attributes:
        scale: Its weight.
        generator: Differentiates the model.
        rows: Its examples, as read.
        columns: Those of the columns of a cross kernel; None for the rows' own.
        centered: Whether it is H K H, the kernel of features without their mean over examples.
    """

    scale: float | Tensor
    generator: Generator
    rows: Recorded
    columns: Recorded | None
    centered: bool = False


class FMatImplicit(FMat):
    """K u = J (J^T u), one backward and one forward-mode pass over the examples for each product; nothing else is stored.

    `trace` takes one sweep, `norm` and `get_dense_tensor` the tiles of the whole kernel, `solve` conjugate gradients and
    `eigendecomposition(k)` Lanczos iterations. Sums and multiples stay implicit. `data` is a tuple of `KernelTerm`.

    Args:
        generator: Differentiates the model, for the identity as likelihood; needed with `examples`.
        data: The kernels of a linear combination, instead of `examples`.
        examples: One batch or a loader, read once.
        others: The same for the columns of a cross kernel.
        method: Forces how layers are contracted where entries are computed; see `FMatDense`.
        out: None: nothing is stored.
        progress: Whether to show a progress bar where entries are computed.

    Raises:
        ValueError: Both or neither of `data` and `examples` are given, there are no examples, or a buffer is given.
    """

    name = "implicit"

    def __init__(
        self,
        generator: Generator | None = None,
        data: tuple[KernelTerm, ...] | None = None,
        examples: Any = None,
        others: Any = None,
        *,
        method: GramMethod | None = None,
        out: Buffer | None = None,
        progress: bool = False,
    ) -> None:
        if (data is None) == (examples is None):
            given = "both" if data is not None else "neither"
            raise ValueError(f"give either `data` or `examples` to FMatImplicit; got {given}")
        if out is not None:
            raise ValueError(
                "an implicit kernel stores nothing that a buffer could take; use 'dense', 'blockdiag' or 'trace'"
            )
        if data is None:
            if generator is None:
                raise ValueError("FMatImplicit needs a `generator` to compute products from `examples`; got none")
            columns = None if others is None else Recorded.of(generator, others)
            data = (KernelTerm(1.0, generator, Recorded.of(generator, examples), columns),)
        self.data = data
        if data[0].generator.group is not None:
            _ = self._outputs  # which all processes find out together
        self.method, self.progress = method, progress

    @cached_property
    def _outputs(self) -> int:
        return common_outputs(self.data[0].generator, self.data[0].rows)

    def size(self) -> tuple[int, int, int, int]:
        """(c, n, c, n), or (c, n1, c, n2) of a cross kernel; none of it is stored."""
        rows, columns = self.data[0].rows, self.data[0].columns
        return self._outputs, rows.total, self._outputs, (rows if columns is None else columns).total

    @property
    def symmetric(self) -> bool:
        """False for a cross kernel."""
        return all(term.columns is None for term in self.data)

    @property
    def _group(self) -> Group | None:
        return self.data[0].generator.group

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products."""
        return product_dtype(self.data[0].generator)

    @property
    def device(self) -> torch.device:
        """The device of products."""
        return self.data[0].generator.device

    def _mv(self, u: Tensor) -> Tensor:
        return self._sum(lambda term: self._product(term, u))

    def _product(self, term: KernelTerm, u: Tensor) -> Tensor:
        columns = term.rows if term.columns is None else term.columns
        pulled = pull_back(term.generator, _center(u) if term.centered else u, columns)
        pushed = push_forward(term.generator, PVector(term.generator.layer_collection, pulled), term.rows)
        return _center(pushed) if term.centered else pushed

    def _quadratic_form(self, u: Tensor) -> Tensor:
        return self._sum(lambda term: self._pulled_norm(term, u))

    def _pulled_norm(self, term: KernelTerm, u: Tensor) -> Tensor:
        """u^T J J^T u = |J^T u|^2, by the backward pass alone."""
        pulled = pull_back(term.generator, _center(u) if term.centered else u, term.rows)
        return pulled @ pulled

    def _trace(self) -> Tensor:
        return self._sum(self._trace_of)

    def _trace_of(self, term: KernelTerm) -> Tensor:
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        generator = term.generator
        with together(generator.group, "a trace"), undisturbed(generator.model, generator.device), torch.no_grad():
            for batch in generator.stream(term.rows):
                for jacobian in batch.layers.values():
                    total += jacobian.squared_norm()
        if generator.group is not None:
            generator.group.sum_(total, "a trace")
        if not term.centered:
            return total
        c, n = self.size()[:2]
        means = torch.eye(c, dtype=self.dtype, device=self.device)[:, :, None].expand(c, c, n) / n**0.5
        uncentered = replace(term, centered=False)
        return total - sum(self._pulled_norm(uncentered, mean) for mean in means)

    def _norm(self) -> Tensor:
        first = self.data[0]
        if len(self.data) > 1 or first.centered or first.generator.group is not None:
            return euclidean_norm(self.get_dense_tensor())
        return kernel_norm(first.generator, first.rows, first.columns) * torch.as_tensor(first.scale).abs()

    def _solve(self, u: Tensor, regul: float) -> Tensor:
        found = conjugate_gradients(
            lambda rows: self._on_rows(rows) + regul * rows, u.reshape(1, -1), what="the kernel"
        )
        return found.view_as(u)

    def _eigendecomposition(self, k: int | None) -> KernelSpectrum:
        if k is None:
            self._unsupported(
                "a whole eigendecomposition", "ask for the k largest eigenvalues, or compute the kernel as 'dense'"
            )
        c, n = self.size()[:2]
        found = leading_eigenpairs(self._on_rows, c * n, k, self.dtype, self.device)
        return KernelSpectrum(found.values, found.vectors.view(-1, c, n), found.residuals)

    def _on_rows(self, rows: Tensor) -> Tensor:
        """K u for each row of (k, c n)."""
        c, n = self.size()[:2]
        return torch.stack([self._mv(row.view(c, n)).flatten() for row in rows])

    def _add(self, other: "FMatImplicit") -> "FMatImplicit":
        return self._with(*self.data, *other.data)

    def _scaled(self, scalar: float | Tensor) -> "FMatImplicit":
        return self._with(*(replace(term, scale=term.scale * scalar) for term in self.data))

    def _centered(self) -> "FMatImplicit":
        return self._with(*(replace(term, centered=True) for term in self.data))

    def _with(self, *terms: KernelTerm) -> "FMatImplicit":
        return FMatImplicit(data=terms, method=self.method, progress=self.progress)

    def get_dense_tensor(self) -> Tensor:
        """All entries, computed anew: shape (c, n, c, n), or (c, n1, c, n2) of a cross kernel."""
        return self._sum(self._entries)

    def _entries(self, term: KernelTerm) -> Tensor:
        kernel = shared_kernel(term.generator, term.rows, term.columns, method=self.method, progress=self.progress)
        return _center(_center(kernel).permute(2, 3, 0, 1)) if term.centered else kernel

    def _sum(self, part: Callable[[KernelTerm], Tensor]) -> Tensor:
        """The linear combination of what each term contributes."""
        first, *others = (part(term) * term.scale for term in self.data)
        for other in others:
            first += other
        return first


def _center(u: Tensor) -> Tensor:
    """u (c, n, ...) without its mean over examples."""
    return u - u.mean(1, keepdim=True)
