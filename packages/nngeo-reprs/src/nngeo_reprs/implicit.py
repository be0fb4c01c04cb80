"""PMatImplicit: a matrix that is nothing but its products."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.lanczos import leading_eigenpairs
from nngeo_core.linear_algebra.linear_map import apply_linear, apply_quadratic
from nngeo_core.linear_algebra.spectral_density import SpectralDensity, spectral_density
from nngeo_core.linear_algebra.stochastic import Estimate, estimate_diagonal, estimate_trace
from nngeo_core.matrices.eigen import Eigendecomposition
from nngeo_core.parallel.group import Group
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.examples import Batch, count_examples, iterate_batches
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.operator import OperatorGenerator
from nngeo_core.sweep.populate import collect
from nngeo_reprs.diag import DiagAccumulator
from nngeo_reprs.eye import EyeAccumulator
from nngeo_reprs.implicit_rows import RowSide, checked_examples
from nngeo_reprs.jacobian_rows import JacobianRows
from nngeo_reprs.product import PMatProduct
from nngeo_reprs.sum import LazyMatrix

__all__ = ["PMatImplicit"]


class PMatImplicit(LazyMatrix):
    """F as its products with vectors, computed from the model and the examples each time. Exact; memory none.

    A product takes one pass over the examples: one forward pass with dual numbers and one backward pass, whatever the number
    of outputs; `vTMv` takes the forward pass alone; `trace` and `get_diag` one sweep of Jacobians. Where the directions of
    all examples are few (4096 at most, and for `solve` fewer than the parameters), `solve`, `logdet`, `sample` and the
    Frobenius norm work on their Gram matrix, and keep it, with the examples' Jacobians, until model or examples change.
    Otherwise, and over the examples of several processes, `solve` runs preconditioned conjugate gradients, and the others
    raise. Nothing is formed in parameter space but by `convert("dense")`, `convert("blockdiag")` and `convert("diag")`.

    The model as it is at the time of a call counts. Loaders are iterated anew each time, and must give the same examples,
    in whatever order; Monte-Carlo draws are functions of the examples, and so always the same.

    Args:
        generator: Differentiates the model; also one without Jacobians, such as that of a Hessian.
        data: The examples.
        examples: The examples: one batch or a loader that can be iterated again and again.
        layer_collection: As for `PMat`.
        scaling: A factor of the matrix.
        **options: As for `PMat`.

    Raises:
        ValueError: There is no generator, or the examples can be read only once.

    Example:
        >>> from nngeo_core import FIM
        >>> model = torch.nn.Linear(2, 1)
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> F = FIM(model, x, "dense", variant="regression")
        >>> PMatImplicit(F.generator, examples=x).trace()
        tensor(8.)
    """

    name = "implicit"
    generator: OperatorGenerator  # type: ignore[assignment]

    def __init__(
        self,
        generator: OperatorGenerator | None = None,
        data: Any = None,
        examples: Any = None,
        layer_collection: LayerCollection | None = None,
        *,
        scaling: float | Tensor = 1.0,
        **options: Any,
    ) -> None:
        self._read: int | None = None
        super().__init__(generator, data, examples, layer_collection, **options)  # type: ignore[arg-type]
        self.scaling = torch.as_tensor(scaling, dtype=self.dtype, device=self.device)
        self._row_side = RowSide(self.generator)

    @classmethod
    def prepare(cls, generator: Generator, choices: Any = None) -> Accumulator | None:
        """None: it stores no sums."""
        return None if choices is None else super().prepare(generator, choices)  # which refuses choices

    def _checked(self, data: Any) -> Any:
        if self.generator is None:
            raise ValueError(
                "a PMatImplicit needs a `generator` to compute its products, also beside a `layer_collection`; got none"
            )
        self.layer_collection.check_same(self.generator.layer_collection)
        if self.generator.likelihood.centred:
            self._unsupported(
                "a matrix from which the mean gradient is subtracted",
                "use the dense, block-diagonal or diagonal representation, or centred=False",
            )
        return checked_examples(data)

    @property
    def _group(self) -> Group | None:
        return self.generator.group

    @property
    def dtype(self) -> torch.dtype:
        """That of products: the model's, at least float32."""
        return self.generator._dtype()

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.generator.device

    def tensors(self) -> dict[str, Tensor]:
        """None are stored."""
        return {}

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "PMatImplicit":
        """The matrix itself, where it is as asked.

        Raises:
            TypeError: The dtype is not a real floating-point one.
            UnsupportedOperationError: The model is of another dtype, or elsewhere.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"a matrix holds real floating-point numbers, got dtype {dtype}")
        wanted = self.device if device is None else torch.device(device)
        same = wanted.type == self.device.type and wanted.index in (None, self.device.index)
        if dtype in (None, self.dtype) and same:
            return self
        self._unsupported("a copy in another dtype or on another device", "move the model, and compute it from there")

    def _batches(self) -> Iterator[Batch]:
        """The examples, counted; the number is that of every pass."""
        seen = 0
        for batch in iterate_batches(self.data):
            seen += count_examples(batch)
            yield batch
        before = self.n_examples if self.generator.group is None else self._read
        if before not in (None, seen):
            raise ValueError(
                f"there were {before} examples in an earlier pass and {seen} in this one, which makes no one matrix; "
                "give a loader that yields the same examples each time (no drop_last, no sampling)"
            )
        self._read = seen
        if self.generator.group is None:
            self.n_examples = seen

    def _count(self) -> None:
        """Know the number of examples of all processes, once a pass over them has been made."""
        group = self.generator.group
        if group is not None and self.n_examples is None:
            with group.together("counting the examples", self._read or 0) as counts:
                pass
            self.n_examples = sum(counts)

    def _mv(self, v: Tensor) -> Tensor:
        rows = v.reshape(-1, v.shape[-1])
        products = apply_linear(self._product_rows, self._product_rows, rows).view(v.shape)
        return products * self.scaling

    def _product_rows(self, rows: Tensor) -> Tensor:
        found = torch.zeros_like(rows)
        for place, row in enumerate(rows):
            found[place] = self.generator.flat_product(row, self._batches())
        if len(rows):
            self._count()
        return found

    def _quadratic_form(self, v: Tensor) -> Tensor:
        def form(flat: Tensor) -> Tensor:
            found = self.generator.flat_quadratic_form(flat, self._batches())
            self._count()
            return found

        return apply_quadratic(form, self._product_rows, v) * self.scaling

    def _solve_iteratively(
        self, v: Tensor, regul: float, preconditioner: Any, tol: float, max_iterations: int | None
    ) -> Tensor:
        small = preconditioner is None and v.numel() and self.scaling >= 0
        rows = self._row_side.rows(self._batches, self.layer_collection.numel()) if small else None
        if rows is None:
            return super()._solve_iteratively(v, regul, preconditioner, tol, max_iterations)
        return rows.solve(v, self.scaling, regul, tol, max_iterations)

    def _logdet(self, regul: float) -> Tensor:
        return self._few_rows("a log-determinant").logdet(self.scaling, regul)

    def _sample(self, regul: float, generator: torch.Generator | None) -> Tensor:
        return self._few_rows("a sample").sample(self.scaling, regul, lambda shape: self._normal(shape, generator))

    def _few_rows(self, what: str) -> JacobianRows:
        if self.generator.group is not None:
            self._unsupported(f"{what} over the examples of several processes", "a factored one such as 'kfac' has it")
        rows = self._row_side.rows(self._batches) if self.scaling >= 0 else None
        if rows is None:
            self._unsupported(
                f"{what}, unless the metric is positive and all examples have {self._row_side.limit} directions at most,",
                "a factored representation such as 'kfac' has one; the spectral density estimates what sums over eigenvalues",
            )
        return rows

    def _inverse(self, regul: float) -> Any:
        self._unsupported("the inverse of its products", "use solve(v, regul)")

    def _mm(self, other: "PMatImplicit") -> PMatProduct:
        return PMatProduct(self, other)

    def _scaled(self, scalar: float | Tensor) -> "PMatImplicit":
        return type(self)(
            self.generator,
            data=self.data,
            layer_collection=self.layer_collection,
            n_examples=self.n_examples,
            likelihood=self.likelihood,
            scaling=self.scaling * scalar,
        )

    def update(self, examples: Any, decay: float, progress: bool = False, **options: Any) -> None:
        """Refused: nothing is stored that could be averaged.

        Raises:
            UnsupportedOperationError: Always.
        """
        self._unsupported(
            "an average with new examples, where nothing is stored,",
            "use decay * F + (1 - decay) * PMatImplicit(generator, examples=examples)",
        )

    def trace(self) -> Tensor:
        """The trace, 0-dimensional, exactly, from one sweep.

        Raises:
            UnsupportedOperationError: The generator has no Jacobians.
        """
        return self._swept(EyeAccumulator, "the trace") * self.layer_collection.numel() * self.scaling

    def get_diag(self) -> Tensor:
        """The diagonal, shape (d,), exactly, from one sweep.

        Raises:
            UnsupportedOperationError: The generator has no Jacobians.
        """
        return self._swept(DiagAccumulator, "the diagonal") * self.scaling

    def _swept(self, kind: type[Accumulator], what: str) -> Tensor:
        if not isinstance(self.generator, Generator):
            self._unsupported(
                f"{what} of an operator without Jacobians",
                "hutchinson_trace and hutchinson_diag estimate it, and convert('blockdiag') has it exactly",
            )
        found: list[Tensor] = collect(self.generator, self._batches(), [kind(self.layer_collection)])
        self._count()
        return found[0]

    def hutchinson_trace(self, samples: int, generator: torch.Generator) -> Estimate:
        """An estimate of the trace with its standard error, from as many products (Hutchinson 1990).

        Args:
            samples: How many random vectors, 2 at least.
            generator: Source of randomness.
        """
        return estimate_trace(
            self._products, self.layer_collection.numel(), samples, self.dtype, self.device, generator
        )

    def hutchinson_diag(self, samples: int, generator: torch.Generator) -> Estimate:
        """An estimate of the diagonal with its standard errors, from as many products.

        Args:
            samples: How many random vectors, 2 at least.
            generator: Source of randomness.
        """
        return estimate_diagonal(
            self._products, self.layer_collection.numel(), samples, self.dtype, self.device, generator
        )

    def spectral_density(self, samples: int, steps: int, generator: torch.Generator) -> SpectralDensity:
        """The distribution of the eigenvalues, from samples x steps products.

        Args:
            samples: How many random vectors, 2 at least.
            steps: How many products with each.
            generator: Source of randomness.
        """
        d = self.layer_collection.numel()
        return spectral_density(self._products, d, samples, steps, self.dtype, self.device, generator)

    def _eigendecomposition(self, k: int | None) -> Eigendecomposition:
        if k is None:
            self._unsupported("all of its eigenvectors", "eigendecomposition(k) has the k leading ones")
        found = leading_eigenpairs(self._products, self.layer_collection.numel(), k, self.dtype, self.device)
        return Eigendecomposition(
            self.layer_collection, found.values, lambda places: found.vectors[places], found.residuals
        )

    def _smallest_singular_value(self) -> Tensor:
        if not self._row_side.fewer_than(self._batches, self.layer_collection.numel()):
            self._unsupported(
                "the smallest singular value, unless the directions of all examples are fewer than the parameters,",
                "convert('dense') has it",
            )
        return torch.zeros((), dtype=self.dtype, device=self.device)

    def frobenius_norm(self) -> Tensor:
        """The Frobenius norm, 0-dimensional, from the Gram matrix of the directions of all examples, 4096 at most.

        Raises:
            UnsupportedOperationError: There are more, or the generator has no Jacobians.
        """
        return self._norms()[0] * self.scaling.abs()

    def _norm_per_layer(self) -> dict[str, Tensor]:
        return {layer_id: norm * self.scaling.abs() for layer_id, norm in self._norms()[1].items()}

    def _norms(self) -> tuple[Tensor, dict[str, Tensor]]:
        if self.generator.group is not None:
            self._unsupported(
                "the Frobenius norm over the examples of several processes", "norm(2) takes products alone"
            )
        rows = self._row_side.rows(self._batches, signed=True)
        if rows is None:
            self._unsupported(
                f"the Frobenius norm, unless all examples have {self._row_side.limit} directions at most,",
                "norm(2) takes products alone, and convert('dense') has both",
            )
        return rows.norms()

    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """Refused: nothing is formed unasked.

        Raises:
            UnsupportedOperationError: Always.
        """
        self._unsupported("a tensor of entries", "convert('dense') computes it")

    def _entries(self) -> Tensor:
        (whole,) = self._scaled_blocks([slice(0, self.layer_collection.numel())])
        return whole

    def _blocks(self) -> dict[str, Tensor]:
        places = self.layer_collection.slices()
        return dict(zip(places, self._scaled_blocks(list(places.values())), strict=True))

    def _scaled_blocks(self, places: list[slice]) -> list[Tensor]:
        found = self.generator.blocks(places, self._batches())
        self._count()
        return [block * self.scaling for block in found]
