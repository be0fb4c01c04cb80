"""PMatAlgebraContract: the linear algebra of a representation, checked against its own dense tensor. Needs pytest."""

from collections.abc import Callable
from typing import ClassVar, TypeVar

import pytest
import torch
from torch import Tensor

from nngeo_core.errors import LayerCollectionMismatchError, UnsupportedOperationError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.layer import Conv2dLayer, LinearLayer
from nngeo_core.matrices.pmat import PMat
from nngeo_core.testing.oracles import relative_error
from nngeo_core.vectors.pvector import PVector, random_pvector

__all__ = ["PMatAlgebraContract"]

T = TypeVar("T")

TOLERANCE = 1e-10
"""Relative error of everything in float64."""

REGULS = (1e-3, 0.1, 10.0, 1e-3)
"""Dampings to solve with, the first one again at the end in case a factorization is kept."""

LAYERS = {
    "two-layers": LayerCollection({"first": LinearLayer(3, 2), "second": LinearLayer(2, 3, bias=False)}),
    "grouped-convolution": LayerCollection({"conv": Conv2dLayer(4, 2, (2, 1), groups=2), "head": LinearLayer(2, 2)}),
    "one-parameter": LayerCollection({"only": LinearLayer(1, 1, bias=False)}),
}


class PMatAlgebraContract:
    """Every operation of a representation built from data, with no model and no generator.

    Subclass it as `Test...`, name the representation, and build one. Each operation must be right to 1e-10, or be listed
    in `unsupported` and then raise `UnsupportedOperationError` with a message that says, after a semicolon, what to do.

    Example:
        >>> from nngeo_core.testing import PMatAlgebraContract
        >>> class TestStriped(PMatAlgebraContract):
        ...     unsupported = frozenset({"inverse"})
        ...
        ...     def build(self, layers, seed):
        ...         generator = torch.Generator().manual_seed(seed)
        ...         return PMatStriped(data=torch.rand(3, generator=generator), layer_collection=layers)
    """

    unsupported: ClassVar[frozenset[str]] = frozenset()
    """Among `"add"`, `"inverse"`, `"mm"`, `"product_solve"` (a product's damped inverse, times a vector)."""

    def build(self, layers: LayerCollection, seed: int) -> PMat:
        """A positive semidefinite matrix in float64 about these layers, another one for another seed."""
        raise NotImplementedError("a PMatAlgebraContract says how to build the representation: override `build`")

    @pytest.fixture(params=LAYERS)
    def matrix(self, request: pytest.FixtureRequest) -> PMat:
        """The matrix under test."""
        return self.build(LAYERS[request.param], 0)

    @pytest.fixture
    def other(self, matrix: PMat) -> PMat:
        """Another one, about the same layers."""
        return self.build(matrix.layer_collection, 1)

    @pytest.fixture
    def stranger(self) -> PMat:
        """One about other layers."""
        return self.build(LayerCollection({"stranger": LinearLayer(2, 1)}), 0)

    def test_size_and_dtype(self, matrix: PMat) -> None:
        """The size is d x d, and the dtype and device are those of the numbers."""
        d, dense = matrix.layer_collection.numel(), matrix.get_dense_tensor()
        assert (matrix.size(), matrix.size(0), matrix.size(1)) == ((d, d), d, d)
        assert (dense.shape, dense.dtype, dense.device) == ((d, d), matrix.dtype, matrix.device)
        assert type(matrix).__name__ in repr(matrix)
        assert f"{d} x {d}" in repr(matrix)

    def test_is_symmetric(self, matrix: PMat) -> None:
        """What is not a product is symmetric."""
        dense = matrix.get_dense_tensor()
        assert matrix.symmetric
        assert relative_error(dense.T, dense) <= TOLERANCE

    def test_diagonal(self, matrix: PMat) -> None:
        """`get_diag` is the diagonal of the dense tensor."""
        assert relative_error(matrix.get_diag(), matrix.get_dense_tensor().diagonal()) <= TOLERANCE

    def test_product_with_a_vector(self, matrix: PMat) -> None:
        """`mv` and `@` multiply by the dense tensor."""
        v = _vector(matrix)
        expected = matrix.get_dense_tensor() @ v.get_flat_representation()
        assert relative_error(matrix.mv(v).get_flat_representation(), expected) <= TOLERANCE
        assert relative_error((matrix @ v).get_flat_representation(), expected) <= TOLERANCE
        assert matrix.mv(v).layer_collection == matrix.layer_collection

    def test_quadratic_form(self, matrix: PMat) -> None:
        """`vTMv` is v^T M v, a scalar."""
        v = _vector(matrix)
        flat = v.get_flat_representation()
        assert relative_error(matrix.vTMv(v), flat @ matrix.get_dense_tensor() @ flat) <= TOLERANCE

    def test_trace_and_norm(self, matrix: PMat) -> None:
        """`trace` and `frobenius_norm` are those of the dense tensor, 0-dimensional."""
        dense = matrix.get_dense_tensor()
        assert relative_error(matrix.trace(), dense.trace()) <= TOLERANCE
        assert relative_error(matrix.frobenius_norm(), dense.norm()) <= TOLERANCE

    def test_solve(self, matrix: PMat) -> None:
        """`solve` inverts M + regul I, for every regul and with the default one."""
        v = _vector(matrix)
        for regul in REGULS:
            _check_solution(matrix.get_dense_tensor(), matrix.solve(v, regul), v, regul)
        _check_solution(matrix.get_dense_tensor(), matrix.solve(v), v, 1e-8)
        _check_solution(matrix.get_dense_tensor(), matrix.solve(v, torch.tensor(0.5)), v, 0.5)  # type: ignore[arg-type]

    def test_inverse(self, matrix: PMat) -> None:
        """`inverse` is (M + regul I)^-1."""
        inverse = self.attempt("inverse", lambda: matrix.inverse(0.1))
        if inverse is not None:
            expected = torch.linalg.inv(_damped(matrix.get_dense_tensor(), 0.1))
            assert type(inverse) is type(matrix)
            assert inverse.symmetric
            assert relative_error(inverse.get_dense_tensor(), expected) <= TOLERANCE

    def test_product_of_matrices(self, matrix: PMat, other: PMat) -> None:
        """`mm` is the product of the dense tensors, and everything but symmetry holds for it."""
        product = self.attempt("mm", lambda: matrix.mm(other))
        if product is None:
            return
        expected, v = matrix.get_dense_tensor() @ other.get_dense_tensor(), _vector(matrix)
        assert relative_error(product.get_dense_tensor(), expected) <= TOLERANCE
        assert not product.symmetric or relative_error(expected, expected.T) <= TOLERANCE
        self.test_diagonal(product)
        self.test_product_with_a_vector(product)
        self.test_quadratic_form(product)
        self.test_trace_and_norm(product)
        assert (2 * product).symmetric == product.symmetric
        for regul in (1.0, 10.0):
            solution = self.attempt("product_solve", lambda regul=regul: product.solve(v, regul))  # type: ignore[misc]
            if solution is not None:
                _check_solution(expected, solution, v, regul)

    def test_sum_and_difference(self, matrix: PMat, other: PMat) -> None:
        """`+` and `-` add and subtract the dense tensors."""
        mine, theirs = matrix.get_dense_tensor(), other.get_dense_tensor()
        total = self.attempt("add", lambda: matrix + other)
        difference = self.attempt("add", lambda: matrix - other)
        if total is not None and difference is not None:
            assert relative_error(total.get_dense_tensor(), mine + theirs) <= TOLERANCE
            assert relative_error(difference.get_dense_tensor(), mine - theirs) <= TOLERANCE

    @pytest.mark.parametrize(
        "factor", [-2.5, 3, torch.tensor(0.5, dtype=torch.float64)], ids=["float", "int", "tensor"]
    )
    def test_multiple(self, matrix: PMat, factor: float | Tensor) -> None:
        """A scalar on either side, or below, multiplies every entry and leaves M as it was."""
        dense = matrix.get_dense_tensor().clone()
        for multiple in (factor * matrix, matrix * factor):
            assert relative_error(multiple.get_dense_tensor(), factor * dense) <= TOLERANCE
            assert multiple.n_examples == matrix.n_examples
        assert relative_error((matrix / factor).get_dense_tensor(), dense / factor) <= TOLERANCE
        assert relative_error((-matrix).get_dense_tensor(), -dense) <= TOLERANCE
        assert relative_error(matrix.get_dense_tensor(), dense) == 0

    def test_gradients(self, matrix: PMat) -> None:
        """`mv`, `vTMv` and `solve` are differentiable with respect to the vector."""
        layers, flat = matrix.layer_collection, _vector(matrix).get_flat_representation().requires_grad_()
        for operation in (
            lambda v: matrix.mv(PVector(layers, vector_repr=v)).get_flat_representation(),
            lambda v: matrix.vTMv(PVector(layers, vector_repr=v)),
            lambda v: matrix.solve(PVector(layers, vector_repr=v), 0.1).get_flat_representation(),
        ):
            assert torch.autograd.gradcheck(operation, flat, fast_mode=True)

    def test_other_layers_are_refused(self, matrix: PMat, stranger: PMat) -> None:
        """Vectors and matrices of another collection raise `LayerCollectionMismatchError`."""
        v = _vector(stranger)
        for act in (matrix.mv, matrix.vTMv, matrix.solve):
            with pytest.raises(LayerCollectionMismatchError):
                act(v)
        for combine in (lambda: matrix + stranger, lambda: matrix - stranger, lambda: matrix.mm(stranger)):
            with pytest.raises(LayerCollectionMismatchError):
                combine()  # type: ignore[no-untyped-call]

    @pytest.mark.parametrize("regul", [-1e-3, float("nan"), float("inf"), torch.ones(2), "0.1"], ids=str)
    def test_bad_regul_is_refused(self, matrix: PMat, regul: object) -> None:
        """A damping is one finite number, not negative."""
        for damped in (lambda: matrix.solve(_vector(matrix), regul), lambda: matrix.inverse(regul)):  # type: ignore[arg-type]
            with pytest.raises((ValueError, TypeError), match=r"regul is (one|a finite) number.*M \+ r I; got"):
                damped()

    def test_wrong_operands_are_refused(self, matrix: PMat) -> None:
        """What is no vector, no matrix or no scalar is named, and what to use instead."""
        v = _vector(matrix)
        with pytest.raises(TypeError, match=r"expected a PVector, got Tensor; PVector\("):
            matrix.mv(v.get_flat_representation())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="expected another matrix"):
            matrix + 1.0  # type: ignore[operator]
        with pytest.raises(TypeError, match="use mv for vectors and mm for matrices"):
            matrix * v  # type: ignore[operator]

    def test_data_or_examples(self, matrix: PMat) -> None:
        """Both or neither of `data` and `examples` are refused."""
        kind, layers = type(matrix), matrix.layer_collection
        with pytest.raises(ValueError, match=f"`data` or `examples` to {kind.__name__}; got neither"):
            kind(layer_collection=layers)
        with pytest.raises(ValueError, match=f"`data` or `examples` to {kind.__name__}; got both"):
            kind(data=matrix.data, examples=torch.ones(1, 1), layer_collection=layers)
        with pytest.raises(ValueError, match="needs a `generator`"):
            kind(examples=torch.ones(1, 1), layer_collection=layers)
        with pytest.raises(ValueError, match="needs a `layer_collection` or a `generator`"):
            kind(data=matrix.data)

    def attempt(self, operation: str, run: Callable[[], T]) -> T | None:
        """The result; None for an unsupported operation, which must raise and name what to do instead."""
        if operation not in self.unsupported:
            return run()
        with pytest.raises(UnsupportedOperationError, match=r"; .*\w") as caught:
            run()
        assert caught.value.args
        return None


def _vector(matrix: PMat) -> PVector:
    generator = torch.Generator().manual_seed(5)
    return random_pvector(matrix.layer_collection, dtype=matrix.dtype, generator=generator)


def _damped(dense: Tensor, regul: float) -> Tensor:
    return dense + regul * torch.eye(len(dense), dtype=dense.dtype)


def _check_solution(dense: Tensor, solution: PVector, v: PVector, regul: float) -> None:
    """The residual is within rounding of (M + regul I) x."""
    x, right = solution.get_flat_representation(), v.get_flat_representation()
    damped = _damped(dense, regul)
    scale = torch.linalg.matrix_norm(damped, 2) * x.norm() + right.norm()
    assert float((damped @ x - right).norm() / scale) <= TOLERANCE * 1e-2
