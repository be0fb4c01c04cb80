"""FMatContract: a kernel computed from models, checked against oracles, and its algebra against its own entries.

Needs pytest, and nngeo-generators installed for the generator `"hooks"`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from nngeo_core.errors import ShapeError, UnsupportedOperationError
from nngeo_core.matrices.fmat import FMat
from nngeo_core.plugins import registry
from nngeo_core.sweep.generator import Generator
from nngeo_core.testing.models import MODELS, Case
from nngeo_core.testing.oracles import output_jacobian, relative_error
from nngeo_core.vectors.fvector import FVector, random_fvector

__all__ = ["FMatContract"]

TOLERANCE = 1e-10
"""Relative error of everything in float64."""

REGULS = (1e-3, 0.1, 10.0, 1e-3)
"""Dampings to solve with, the first one again at the end in case a factorization is kept."""

WAYS = (
    "mlp",
    "mlp-one-example",
    "mlp-one-parameter-layer",
    "conv-groups",
    "conv-one-position",
    "positions-as-many-as-examples",
    "tied-weight-own-bias",
)
"""Models whose kernels are computed in every way."""

ALGEBRA = ("mlp", "mlp-one-example", "conv-depthwise", "called-twice")
"""Models whose kernels are calculated with."""


class FMatContract:
    """A representation of the kernel over all of `MODELS`: its value, how the data may come, and its linear algebra.

    Subclass it as `Test...` and name the representation. One that is not the whole kernel says what it keeps of it.

    Example:
        >>> from nngeo_core.testing import FMatContract
        >>> class TestStriped(FMatContract):
        ...     representation = FMat  # yours
        ...
        ...     def kept(self, kernel):
        ...         return kernel * stripes(kernel.shape)
    """

    representation: ClassVar[type[Any]]

    unsupported: ClassVar[frozenset[str]] = frozenset()
    """Among `"inverse"`, `"logdet"`, `"spectrum"` (all eigenvalues): each then raises `UnsupportedOperationError`."""

    def kept(self, kernel: Tensor) -> Tensor:
        """What `get_dense_tensor` must be of a kernel (c, n, k, m): all of it unless overridden."""
        return kernel

    @pytest.fixture(params=ALGEBRA)
    def matrix(self, request: pytest.FixtureRequest) -> FMat:
        """The kernel that is calculated with."""
        case = _case(request.param)
        return self.build(case, case.inputs)

    def build(
        self, case: Case, examples: Any, others: Any = None, memory_budget: int | None = None, **options: Any
    ) -> FMat:
        """The kernel of a case's model."""
        found: FMat = self.representation(_generator(case, memory_budget), examples=examples, others=others, **options)
        return found

    def expected(self, case: Case, others: Tensor | None = None) -> Tensor:
        """The dense tensor from oracles."""
        rows = _jacobian(case)
        columns = rows if others is None else _jacobian_at(case, others)
        return self.kept(torch.einsum("cnd,kmd->cnkm", rows, columns))

    @pytest.mark.parametrize("model", MODELS)
    def test_value(self, model: str) -> None:
        """The dense tensor is what the oracle says, and exactly symmetric where it is stored."""
        case = _case(model)
        found = self.build(case, case.inputs)
        dense = found.get_dense_tensor()
        assert dense.shape == found.size()
        assert relative_error(dense, self.expected(case)) <= TOLERANCE
        assert relative_error(dense.permute(2, 3, 0, 1), dense) == 0

    @pytest.mark.parametrize("model", WAYS)
    def test_float32(self, model: str) -> None:
        """A model in float32 gives a kernel in float32, to 1e-4."""
        single = _case(model).to(torch.float32)
        found = self.build(single, single.inputs)
        assert found.dtype == torch.float32
        assert relative_error(found.get_dense_tensor(), self.expected(_case(model))) <= 1e-4

    @pytest.mark.parametrize("model", WAYS)
    @pytest.mark.parametrize("memory_budget", [1, 4096, None])
    def test_batches_and_budgets_do_not_matter(self, model: str, memory_budget: int | None) -> None:
        """One direction of one example at a time, kept or computed again, gives the same kernel."""
        case = _case(model)
        batches = ((part,) for part in (case.inputs[:0], *case.inputs.split(3)))  # an iterator: it can be read once
        found = self.build(case, batches, memory_budget=memory_budget)
        assert relative_error(found.get_dense_tensor(), self.expected(case)) <= TOLERANCE

    @pytest.mark.parametrize("model", WAYS)
    @pytest.mark.parametrize("method", ["positions", "gradients", "products"])
    def test_methods_agree(self, model: str, method: str) -> None:
        """Every order of contraction gives the same kernel."""
        case = _case(model)
        found = self.build(case, case.inputs, method=method)
        assert relative_error(found.get_dense_tensor(), self.expected(case)) <= TOLERANCE

    @pytest.mark.parametrize("model", WAYS)
    @pytest.mark.parametrize("memory_budget", [1, None])
    def test_cross_kernel(self, model: str, memory_budget: int | None) -> None:
        """K(X1, X2) has its own shape, products and norm, and refuses what needs a symmetric matrix."""
        case = _case(model)
        others = case.inputs.flip(0)[:2] * 0.5 - 1
        found = self.build(case, case.inputs, others, memory_budget)
        dense = found.get_dense_tensor()
        assert relative_error(dense, self.expected(case, others)) <= TOLERANCE
        assert not found.symmetric
        u = _vector(found.size()[2:])
        assert relative_error(found.mv(u).vector_repr, torch.einsum("cnkm,km->cn", dense, u.vector_repr)) <= TOLERANCE
        assert relative_error(found.norm(), dense.norm()) <= TOLERANCE
        for attempt in (found.trace, found.inverse, found.logdet, found.eigendecomposition, found.centered):
            with pytest.raises(UnsupportedOperationError, match="cross kernel"):
                attempt()
        for act in (found.solve, found.vTMv):
            with pytest.raises(UnsupportedOperationError, match="cross kernel"):
                act(u)

    def test_description(self, matrix: FMat) -> None:
        """Size, dtype and device are those of the entries."""
        dense = matrix.get_dense_tensor()
        assert (dense.shape, dense.dtype, dense.device) == (matrix.size(), matrix.dtype, matrix.device)
        assert matrix.symmetric
        assert type(matrix).__name__ in repr(matrix)

    def test_products(self, matrix: FMat) -> None:
        """`mv`, `@` and `vTMv` are those of the entries, row-major."""
        u, dense = _vector(matrix.size()[:2]), _flat(matrix)
        flat = u.get_flat_representation()
        assert relative_error(matrix.mv(u).get_flat_representation(), dense @ flat) <= TOLERANCE
        assert relative_error((matrix @ u).get_flat_representation(), dense @ flat) <= TOLERANCE
        assert relative_error(matrix.vTMv(u), flat @ dense @ flat) <= TOLERANCE

    def test_trace_and_norm(self, matrix: FMat) -> None:
        """Both are 0-dimensional, and those of the entries."""
        dense = _flat(matrix)
        assert relative_error(matrix.trace(), dense.trace()) <= TOLERANCE
        assert relative_error(matrix.norm(), dense.norm()) <= TOLERANCE

    def test_solve(self, matrix: FMat) -> None:
        """`solve` inverts K + regul I, for every regul."""
        u, dense = _vector(matrix.size()[:2]), _flat(matrix)
        flat, identity = u.get_flat_representation(), torch.eye(len(dense)).to(dense)
        for regul in (*REGULS, torch.tensor(0.5)):
            found = matrix.solve(u, regul).get_flat_representation()
            damped = dense + float(regul) * identity
            residual = (damped @ found - flat).norm()
            assert residual <= TOLERANCE * (damped.norm() * found.norm() + flat.norm())

    def test_inverse_and_logdet(self, matrix: FMat) -> None:
        """Both are those of K + regul I."""
        dense = _flat(matrix)
        damped = dense + 0.1 * torch.eye(len(dense)).to(dense)
        inverse = self.attempt("inverse", lambda: matrix.inverse(0.1))
        if inverse is not None:
            assert relative_error(_flat(inverse) @ damped, torch.eye(len(dense)).to(dense)) <= TOLERANCE
        found = self.attempt("logdet", lambda: matrix.logdet(0.1))
        if found is not None:
            assert relative_error(found, damped.logdet()) <= TOLERANCE

    def test_spectrum(self, matrix: FMat) -> None:
        """Eigenvalues ascend, none is negative beyond rounding, and eigenvectors are orthonormal and as many as asked for."""
        dense = _flat(matrix)
        values = torch.linalg.eigvalsh(dense)
        assert values[0] >= -1e-12 * values[-1]
        found = [self.attempt("spectrum", matrix.eigendecomposition), matrix.eigendecomposition(min(2, len(values)))]
        for part in found:
            if part is not None:
                assert relative_error(part.values, values[-len(part.values) :]) <= TOLERANCE
                rows = part.vectors.flatten(1)
                assert relative_error(rows @ rows.T, torch.eye(len(rows)).to(rows)) <= TOLERANCE
                assert (rows @ dense - part.values[:, None] * rows).norm() <= 1e-9 * dense.norm()
                assert part.vector(-1).size() == matrix.size()[:2]

    def test_sums_and_multiples(self, matrix: FMat) -> None:
        """`+`, `-` and scalar multiples are those of the entries, and have traces, norms and products of their own."""
        dense, u = _flat(matrix), _vector(matrix.size()[:2])
        cases = {2.5: 2 * matrix + matrix / 2, 0.75: matrix - 0.25 * matrix, -3.0: -matrix * torch.tensor(3.0)}
        for factor, found in cases.items():
            assert relative_error(_flat(found), factor * dense) <= TOLERANCE
            assert relative_error(found.trace(), factor * dense.trace()) <= TOLERANCE
            assert relative_error(found.norm(), abs(factor) * dense.norm()) <= TOLERANCE
            expected = factor * (dense @ u.get_flat_representation())
            assert relative_error(found.mv(u).get_flat_representation(), expected) <= TOLERANCE

    def test_centering(self, matrix: FMat) -> None:
        """`centered` takes the mean over examples from the features of every output."""
        c, n, _, _ = matrix.size()
        one = torch.eye(n, dtype=matrix.dtype) - 1 / n
        dense, center = _flat(matrix), torch.block_diag(*[one] * c)
        found, u = matrix.centered(), _vector((c, n))
        scale = TOLERANCE * dense.norm()
        assert (_flat(found) - center @ dense @ center).norm() <= scale
        assert (found.trace() - (center @ dense).trace()).abs() <= scale
        product = center @ dense @ center @ u.get_flat_representation()
        assert (found.mv(u).get_flat_representation() - product).norm() <= scale * u.norm()

    def test_what_is_refused(self, matrix: FMat) -> None:
        """Wrong vectors, partners, dampings and numbers of eigenvalues say what was expected."""
        c, n, _, _ = matrix.size()
        wrong: list[tuple[type[Exception], str, Callable[[], object]]] = [
            (TypeError, "expected an FVector, got Tensor", lambda: matrix.mv(torch.ones(c, n))),  # type: ignore[arg-type]
            (ShapeError, "expected an FVector of shape", lambda: matrix.mv(FVector(torch.ones(c, n + 1)))),
            (ValueError, "regul is a finite number >= 0", lambda: matrix.solve(_vector((c, n)), -1.0)),
            (ValueError, f"1 to {c * n}; got 0", lambda: matrix.eigendecomposition(0)),
            (ValueError, f"1 to {c * n}; got", lambda: matrix.eigendecomposition(c * n + 1)),
            (TypeError, "expected another kernel", lambda: matrix + 1),
            (TypeError, "0-dimensional tensor", lambda: matrix * torch.ones(2)),
        ]
        for error, message, attempt in wrong:
            with pytest.raises(error, match=message):
                attempt()

    def test_kernels_of_other_sizes_are_not_added(self) -> None:
        """Kernels of different examples are different things."""
        case = _case("mlp")
        with pytest.raises(ShapeError, match="two kernels of one size"):
            self.build(case, case.inputs) + self.build(case, case.inputs[:2])

    def test_no_examples_are_refused(self) -> None:
        """An empty loader has no kernel."""
        case = _case("mlp")
        for examples in ([], [(case.inputs[:0],)]):
            with pytest.raises(ValueError, match="no examples"):
                self.build(case, iter(examples))

    def test_both_or_neither_source_is_refused(self) -> None:
        """A kernel comes from numbers or from examples."""
        for options in ({}, {"data": torch.ones(1), "examples": torch.ones(1)}):
            with pytest.raises(ValueError, match="either `data` or `examples`"):
                self.representation(**options)
        with pytest.raises(ValueError, match="needs a `generator`"):
            self.representation(examples=torch.ones(1))

    def attempt(self, name: str, call: Callable[[], Any]) -> Any:
        """The result; or None after checking the refusal of what is listed in `unsupported`."""
        if name not in self.unsupported:
            return call()
        with pytest.raises(UnsupportedOperationError, match="; "):
            call()
        return None


def _flat(kernel: FMat) -> Tensor:
    c, n, k, m = kernel.size()
    return kernel.get_dense_tensor().reshape(c * n, k * m)


def _vector(size: tuple[int, ...]) -> FVector:
    source = torch.Generator().manual_seed(0)
    return random_fvector(size[1], size[0], dtype=torch.float64, generator=source)


@cache
def _case(model: str) -> Case:
    return MODELS[model]()


@cache
def _generator(case: Case, memory_budget: int | None) -> Generator:
    found: Generator = registry.generator("hooks")(case.model, "regression", memory_budget=memory_budget)
    return found


def _jacobian_at(case: Case, inputs: Tensor) -> Tensor:
    names = [name for names in _generator(case, None).layer_collection.parameter_names.values() for name in names]
    return output_jacobian(case.model, inputs, names)


@cache
def _jacobian(case: Case) -> Tensor:
    return _jacobian_at(case, case.inputs)
