"""PMatAlgebraContract: the linear algebra of a representation, checked against its own dense tensor. Needs pytest."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from nngeo_core.errors import LayerCollectionMismatchError, ShapeError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.layer import Conv2dLayer, LinearLayer
from nngeo_core.matrices.pmat import PMat
from nngeo_core.plugins import registry
from nngeo_core.testing.oracles import relative_error
from nngeo_core.testing.pmat_files import PMatFilesContract
from nngeo_core.testing.pmat_spectrum import TOLERANCE
from nngeo_core.vectors.pvector import PVector, random_pvector

__all__ = ["PMatAlgebraContract"]


REGULS = (1e-3, 0.1, 10.0, 1e-3)
"""Dampings to solve with, the first one again at the end in case a factorization is kept."""

LAYERS = {
    "two-layers": LayerCollection({"first": LinearLayer(3, 2), "second": LinearLayer(2, 3, bias=False)}),
    "grouped-convolution": LayerCollection({"conv": Conv2dLayer(4, 2, (2, 1), groups=2), "head": LinearLayer(2, 2)}),
    "one-parameter": LayerCollection({"only": LinearLayer(1, 1, bias=False)}),
}


class PMatAlgebraContract(PMatFilesContract):
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
    """Among `"add"`, `"add_identity"`, `"inverse"`, `"mm"`, `"product_solve"` (a product's damped inverse, times a vector), and
    those of `PMatSpectrumContract`."""
    inverse_kind: ClassVar[str] = ""
    """Name of the representation of the damped inverse, where that is another one."""

    def build(self, layers: LayerCollection, seed: int) -> PMat:
        """A positive semidefinite matrix in float64 about these layers, another one for another seed."""
        raise NotImplementedError("a PMatAlgebraContract says how to build the representation: override `build`")

    def tensors_to_change(self, matrix: PMat) -> Iterable[Tensor]:
        """Those that may be changed in place, if not all that are stored: eigenvectors, say, would be none afterwards."""
        return matrix.tensors().values()

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
        _check_solution(matrix.get_dense_tensor(), matrix.solve(v, torch.tensor(0.5)), v, 0.5)

    def test_inverse(self, matrix: PMat) -> None:
        """`inverse` is (M + regul I)^-1."""
        inverse = self.attempt("inverse", lambda: matrix.inverse(0.1))
        if inverse is not None:
            expected = torch.linalg.inv(_damped(matrix.get_dense_tensor(), 0.1))
            assert inverse.name == (self.inverse_kind or matrix.name)
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
        combinations: list[Callable[[], object]] = [
            lambda: matrix + stranger,
            lambda: matrix - stranger,
            lambda: matrix.mm(stranger),
        ]
        for combine in combinations:
            with pytest.raises(LayerCollectionMismatchError):
                combine()

    @pytest.mark.parametrize("regul", [-1e-3, float("nan"), float("inf"), torch.ones(2), "0.1"], ids=str)
    def test_bad_regul_is_refused(self, matrix: PMat, regul: object) -> None:
        """A damping is one finite number, not negative."""
        bad: Any = regul
        for damped in (lambda: matrix.solve(_vector(matrix), bad), lambda: matrix.inverse(bad)):
            with pytest.raises((ValueError, TypeError), match=r"regul is (one|a finite) number.*M \+ r I; got"):
                damped()

    def test_wrong_operands_are_refused(self, matrix: PMat) -> None:
        """What is no vector, no matrix or no scalar is named, and what to use instead."""
        v = _vector(matrix)
        with pytest.raises(TypeError, match=r"expected a PVector, got Tensor; PVector\("):
            matrix.mv(v.get_flat_representation())
        with pytest.raises(TypeError, match="expected another matrix"):
            matrix + 1.0
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

    def test_batches_of_vectors(self, matrix: PMat) -> None:
        """`mv` and `solve` take tensors (k, d) and (c, n, d), row by row, and return them in their shape."""
        dense, d = matrix.get_dense_tensor(), matrix.layer_collection.numel()
        for shape in ((3, d), (2, 3, d), (0, d), (1, 1, d)):
            rows = torch.randn(shape, dtype=dense.dtype, generator=torch.Generator().manual_seed(6))
            product, solution = matrix @ rows, matrix.solve(rows, 0.1)
            assert (product.shape, solution.shape) == (shape, shape)
            assert relative_error(product, rows @ dense.T) <= TOLERANCE
            residual = solution @ _damped(dense, 0.1).T - rows
            assert residual.norm() <= TOLERANCE * 1e-2 * (rows.norm() + dense.norm() * solution.norm())
        with pytest.raises(ShapeError, match=rf"\(k, {d}\) or \(c, n, {d}\), got \(2, {d + 1}\)"):
            matrix.mv(torch.zeros(2, d + 1, dtype=dense.dtype))

    def test_sum_with_the_identity(self, matrix: PMat) -> None:
        """M + c I and M - c I for a `PMatEye`, in whatever kind the representation names."""
        eye = registry.representation("eye", kind="pmat")(layer_collection=matrix.layer_collection, scaling=0.5)
        dense = matrix.get_dense_tensor()
        shifted = self.attempt("add_identity", lambda: matrix + eye)
        difference = self.attempt("add_identity", lambda: matrix - 2 * eye)
        if shifted is not None and difference is not None:
            assert relative_error(shifted.get_dense_tensor(), _damped(dense, 0.5)) <= TOLERANCE
            assert relative_error((eye + matrix).get_dense_tensor(), _damped(dense, 0.5)) <= TOLERANCE
            assert relative_error(difference.get_dense_tensor(), _damped(dense, -1.0)) <= TOLERANCE

    @pytest.mark.parametrize("scale", [1e-12, 1e12])
    def test_any_scale(self, matrix: PMat, scale: float) -> None:
        """What holds for M holds for very small and very large multiples of it."""
        scaled, v = matrix * scale, _vector(matrix)
        dense = scaled.get_dense_tensor()
        assert relative_error(scaled.mv(v).get_flat_representation(), dense @ v.get_flat_representation()) <= TOLERANCE
        assert relative_error(scaled.frobenius_norm(), dense.norm()) <= TOLERANCE
        _check_solution(dense, scaled.solve(v, scale * 0.1), v, scale * 0.1)

    def test_to_another_dtype(self, matrix: PMat) -> None:
        """`to` copies: float32 rounds, and integers are refused."""
        single = matrix.to(torch.float32)
        assert (type(single), single.dtype, matrix.dtype) == (type(matrix), torch.float32, torch.float64)
        assert relative_error(single.get_dense_tensor(), matrix.get_dense_tensor()) <= 1e-6
        assert single.n_examples == matrix.n_examples
        with pytest.raises(TypeError, match="real floating-point numbers, got dtype torch.int64"):
            matrix.to(torch.int64)

    def test_under_autocast(self, matrix: PMat) -> None:
        """The caller's autocast does not reach the algebra."""
        v, single = _vector(matrix), matrix.to(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            product = single.mv(v.to(dtype=torch.float32))
        assert product.get_flat_representation().dtype == torch.float32
        expected = matrix.mv(v).get_flat_representation()
        scale = float(matrix.frobenius_norm() * v.norm())
        assert (product.get_flat_representation() - expected).norm() <= 1e-5 * scale

    def test_data_changed_in_place(self, matrix: PMat) -> None:
        """A factorization that was kept is not used for other numbers."""
        v, twice = _vector(matrix), matrix * 1.0
        twice.data = deepcopy(twice.data)
        twice.solve(v, 0.1)
        with torch.no_grad():
            for tensor in self.tensors_to_change(twice):
                tensor.mul_(2.0)
        _check_solution(twice.get_dense_tensor(), twice.solve(v, 0.1), v, 0.1)

    def test_scipy(self, matrix: PMat) -> None:
        """The operator for scipy multiplies by the dense tensor, columns too."""
        columns = torch.randn(matrix.layer_collection.numel(), 2, dtype=torch.float64).numpy()
        operator, dense = matrix.to_scipy(), matrix.get_dense_tensor().numpy()
        assert relative_error(torch.from_numpy(operator @ columns), torch.from_numpy(dense @ columns)) <= TOLERANCE
        found = torch.from_numpy(operator.matvec(columns[:, 0]))
        assert relative_error(found, torch.from_numpy(dense @ columns[:, 0])) <= TOLERANCE


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
