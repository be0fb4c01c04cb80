"""PMatImplicit: F as nothing but its products."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import nngeo_reprs.implicit_rows
from nngeo_core import (
    FIM,
    ConvergenceError,
    EmpiricalFIM,
    Generator,
    LayerCollectionMismatchError,
    NotPositiveDefiniteError,
    PMat,
    PVector,
    UnsupportedOperationError,
    random_pvector,
)
from nngeo_core.likelihoods.categorical import ClassifLogits
from nngeo_core.likelihoods.curvature import OutputMetric
from nngeo_core.likelihoods.gaussian import GaussianLikelihood
from nngeo_core.likelihoods.sampled import MonteCarlo
from nngeo_core.plugins import registry
from nngeo_core.testing import MODELS, Case, PMatContract, relative_error
from nngeo_core.testing.models import mlp
from nngeo_reprs import PMatDense, PMatDiag, PMatEye, PMatImplicit, PMatKFAC, PMatProduct, PMatSum

CASES = (
    "mlp-one-example",
    "mlp-one-parameter-layer",
    "mlp-frozen-first",
    "conv-groups",
    "positions-sequence",
    "called-twice",
    "tied-weight",
)


class Shown(PMatImplicit):
    """The matrix with its entries, so that the contract can look at them."""

    def get_dense_tensor(self) -> Tensor:
        return self._entries()


class TestPMatImplicit(PMatContract):
    representation = Shown
    unsupported = frozenset({"eigendecomposition", "inverse", "mm", "pinv", "save", "sqrt", "smallest_singular_value"})

    test_slices_of_directions_do_not_matter: ClassVar[Any] = None  # it stores no sums
    test_halves_merge: ClassVar[Any] = None
    test_resumed_sweep: ClassVar[Any] = None
    test_data_alone: ClassVar[Any] = None
    test_data_changed_in_place: ClassVar[Any] = None
    test_to_another_dtype: ClassVar[Any] = None
    test_product_of_matrices: ClassVar[Any] = None  # tested below

    @pytest.fixture(params=CASES)
    def case(self, request: pytest.FixtureRequest) -> Case:
        """The model and its inputs."""
        return _case(request.param)

    def test_sample(self, matrix: PMat, monkeypatch: pytest.MonkeyPatch) -> None:
        """A draw is B e for independent normal numbers e, and B B^T = (M + r I)^-1; B is read off unit vectors."""
        units: list[Tensor] = []

        def normal(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
            whole = units.pop()
            units.append(whole[shape[1] :])
            return whole[: shape[1]].view(shape)

        first = matrix.sample(0.5, torch.Generator().manual_seed(1)).get_flat_representation()
        again = matrix.sample(0.5, torch.Generator().manual_seed(1)).get_flat_representation()
        assert torch.equal(first, again)
        rows = matrix._row_side.rows(matrix._batches)  # type: ignore[attr-defined]
        total = sum(rows.heights) + len(first)
        monkeypatch.setattr(matrix, "_normal", normal)
        columns = []
        for unit in torch.eye(total, dtype=torch.float64):
            units[:] = [unit]
            columns.append(matrix.sample(0.5).get_flat_representation())
        factor, dense = torch.stack(columns), matrix.get_dense_tensor()
        expected = torch.linalg.inv(dense + 0.5 * torch.eye(len(dense), dtype=torch.float64))
        assert relative_error(factor.T @ factor, expected) <= 1e-10

    def test_smallest_singular_value(self, case: Case, matrix: PMat) -> None:
        """Zero where rows are fewer than columns."""
        d, rows = matrix.layer_collection.numel(), case.model(case.inputs).numel()
        if rows < d:
            assert matrix.norm(-2) == 0
        else:
            with pytest.raises(UnsupportedOperationError, match=r"fewer than the parameters, is not a Shown; convert"):
                matrix.norm(-2)

    def test_eigendecomposition(self, matrix: PMat) -> None:
        """The leading ones, with bounds of their residuals."""
        dense = matrix.get_dense_tensor()
        expected = torch.linalg.eigvalsh(dense)
        found = matrix.eigendecomposition(2)
        vectors = found.vectors()
        assert found.residuals is not None
        assert (found.values - expected[-2:]).abs().max() <= 1e-10 * expected[-1]
        assert (vectors @ dense - found.values.unsqueeze(1) * vectors).norm() <= 1e-9 * expected[-1]
        assert (vectors @ vectors.T - torch.eye(2, dtype=torch.float64)).norm() <= 1e-12
        with pytest.raises(UnsupportedOperationError, match=r"; eigendecomposition\(k\) has the k leading ones"):
            matrix.eigendecomposition()

    def test_mm(self, matrix: PMat, other: PMat) -> None:
        """A product is lazy."""
        product = matrix.mm(other)
        expected = matrix.get_dense_tensor() @ other.get_dense_tensor()
        rows = torch.randn(2, len(expected), dtype=torch.float64)
        assert isinstance(product, PMatProduct)
        assert not product.symmetric
        assert relative_error(product.mv(rows), rows @ expected.T) <= 1e-10
        assert relative_error(product.convert("dense").get_dense_tensor(), expected) <= 1e-10

    def test_under_autocast(self, matrix: PMat) -> None:
        """The caller's autocast does not reach the products."""
        v = random_pvector(matrix.layer_collection, dtype=torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            product = matrix.mv(v)
        assert relative_error(product.get_flat_representation(), matrix.mv(v).get_flat_representation()) <= 1e-12

    def test_no_examples_are_refused(self, generator: Generator) -> None:
        """An empty loader has no Fisher matrix."""
        for act in (lambda F: F.trace(), lambda F: F.norm(2), lambda F: F.norm(), lambda F: F.convert("dense")):
            with pytest.raises(ValueError, match="no examples"):
                act(PMatImplicit(generator, examples=[]))

    def test_data_or_examples(self, matrix: PMat) -> None:
        """Both, neither, or no generator are refused."""
        layers, generator = matrix.layer_collection, matrix.generator
        with pytest.raises(ValueError, match="got neither"):
            PMatImplicit(generator)
        with pytest.raises(ValueError, match="got both"):
            PMatImplicit(generator, data=matrix.data, examples=matrix.data)
        for given in ("data", "examples"):
            with pytest.raises(ValueError, match="needs a `generator`"):
                PMatImplicit(layer_collection=layers, **{given: matrix.data})

    def test_scipy(self, matrix: PMat) -> None:
        """The operator for scipy multiplies."""
        columns = torch.randn(matrix.layer_collection.numel(), 2, dtype=torch.float64)
        found = torch.from_numpy(matrix.to_scipy() @ columns.numpy())
        assert relative_error(found, matrix.get_dense_tensor() @ columns) <= 1e-10


def _case(name: str) -> Case:
    return MODELS[name]()


def _implicit(case: Case, variant: Any = "classif_logits", examples: Any = None) -> PMatImplicit:
    generator = registry.generator("hooks")(case.model, variant)
    return PMatImplicit(generator, examples=case.inputs if examples is None else examples)


def _rows(matrix: PMat, k: int = 2) -> Tensor:
    return torch.randn(
        k, matrix.layer_collection.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def _check_solution(dense: Tensor, x: Tensor, right: Tensor, regul: float) -> None:
    residual = x @ dense + regul * x - right
    assert residual.norm() <= 1e-12 * (dense.norm() * x.norm() + right.norm())


@pytest.fixture
def few_examples() -> tuple[PMatImplicit, Tensor]:
    """Fewer rows than parameters."""
    case = mlp()
    return _implicit(case), FIM(case.model, case.inputs, PMatDense).data


def test_nothing_is_stored_and_nothing_formed(few_examples: tuple[PMatImplicit, Tensor]) -> None:
    matrix, _ = few_examples
    assert (matrix.nbytes, matrix.tensors(), matrix.n_examples) == (0, {}, None)
    assert "an unknown number of examples, classif_logits, 0 bytes, torch.float64, cpu" in repr(matrix)
    matrix.trace()
    assert matrix.n_examples == 7
    with pytest.raises(UnsupportedOperationError, match=r"; convert\('dense'\) computes it"):
        matrix.get_dense_tensor()
    for kind in ("dense", "blockdiag", "diag"):
        assert matrix.convert(kind).n_examples == 7


def test_it_is_a_representation_by_name() -> None:
    assert registry.representation("implicit") is PMatImplicit
    generator = registry.generator("hooks")(mlp().model, "classif_logits")
    assert PMatImplicit.prepare(generator) is None
    with pytest.raises(TypeError, match="is one representation"):
        PMatImplicit.prepare(generator, {})


@pytest.mark.parametrize("scaling", [1.0, 1e-12, 1e12])
@pytest.mark.parametrize("regul", [1e-8, 1e-2])
def test_the_gram_side_leaves_a_residual_of_rounding(
    few_examples: tuple[PMatImplicit, Tensor], scaling: float, regul: float
) -> None:
    matrix, dense = few_examples
    inside = _rows(matrix) @ dense
    for right in (_rows(matrix), inside):
        x = (matrix * scaling).solve(right, regul * scaling)
        _check_solution(dense * scaling, x, right, regul * scaling)
    with pytest.raises(NotPositiveDefiniteError, match="with regul="):
        matrix.solve(inside, 0)


def test_with_many_rows_it_iterates_and_a_preconditioner_helps() -> None:
    case = mlp(widths=(3, 3, 2), n_examples=40)
    matrix, counts = _implicit(case, "regression"), []
    dense, kfac = FIM(case.model, case.inputs, [PMatDense, PMatKFAC], variant="regression")
    product = matrix.generator.flat_product

    def counted(v: Tensor, examples: Any) -> Tensor:
        counts.append(1)
        return product(v, examples)

    matrix.generator.flat_product = counted  # type: ignore[method-assign]
    right = _rows(matrix, 1)
    for preconditioner in (None, kfac, dense):
        _check_solution(dense.data, matrix.solve(right, 1e-4, preconditioner), right, 1e-4)
        counts.append(0)
    ends = [place for place, count in enumerate(counts) if not count]
    plain, factored, exact = ends[0], ends[1] - ends[0], ends[2] - ends[1]
    assert exact <= 5 < factored < plain
    with pytest.raises(ConvergenceError, match=r"the Shown|the PMatImplicit \+ 1e-08 I left a residual"):
        matrix.solve(right, max_iterations=2)


def test_a_gram_matrix_beyond_its_size_is_not_formed(
    few_examples: tuple[PMatImplicit, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, dense = few_examples
    monkeypatch.setattr(nngeo_reprs.implicit_rows, "LARGEST_GRAM", 11)
    large = matrix * 1.0
    right = _rows(matrix, 1)
    _check_solution(dense, large.solve(right, 0.1), right, 0.1)
    for refused in (large.norm, large.norm_per_layer, large.logdet, large.sample):
        with pytest.raises(UnsupportedOperationError, match="11 directions at most, is not a PMatImplicit; "):
            refused()
    assert large.norm(-2) == 0
    assert relative_error(large.norm(2), torch.linalg.matrix_norm(dense, 2)) <= 1e-10


def test_a_changed_model_or_example_is_seen() -> None:
    case = mlp()
    x = case.inputs.clone()
    matrix = _implicit(case, examples=x)
    right = _rows(matrix, 1)

    def check() -> None:
        dense = FIM(case.model, x, PMatDense).data
        _check_solution(dense, matrix.solve(right, 0.1), right, 0.1)
        assert relative_error(matrix.norm(), dense.norm()) <= 1e-10

    check()
    with torch.no_grad():
        next(case.model.parameters()).mul_(2)
    check()
    next(case.model.parameters()).data.add_(0.1)
    check()
    weight = next(case.model.parameters())
    weight.data = weight.data.flip(0)  # neither another tensor nor another sum
    check()
    x.mul_(0.5)
    check()


class Switched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act, self.temperature, self.stopped = nn.Linear(6, 5), nn.Tanh(), 1.0, False

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.act(self.layer(x))
        return (found.detach() + 0 * found if self.stopped else found) / self.temperature


CHANGES: dict[str, Any] = {
    "attribute": lambda model, outer: setattr(model, "temperature", 0.25),
    "slightly": lambda model, outer: setattr(model, "temperature", 1 - 1e-12),
    "submodule": lambda model, outer: setattr(model, "act", nn.ReLU()),
    "derivative-alone": lambda model, outer: setattr(model, "stopped", True),
    "closure": lambda model, outer: outer.update(scale=4.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_anything_that_the_outputs_come_from_is_seen(change: Any) -> None:
    torch.manual_seed(0)
    model, outer, x = Switched().double(), {"scale": 1.0}, torch.randn(3, 6).double()
    generator = registry.generator("hooks")(model, "regression", lambda x: outer["scale"] * model(x))
    F, v = PMatImplicit(generator, examples=x), torch.randn(1, 35).double()
    F.solve(v, regul=0.1)
    before = F.norm(), F.logdet(0.1)
    change(model, outer)
    exact = PMatDense(registry.generator("hooks")(model, "regression", generator.function), examples=x)
    solved = F.solve(v, regul=0.1)
    assert (exact.mv(solved) + 0.1 * solved - v).norm() <= 1e-12 * v.norm()
    assert torch.allclose(F.norm(), exact.norm(), rtol=1e-13, atol=1e-13)
    assert torch.allclose(F.logdet(0.1), exact.logdet(0.1), rtol=1e-13, atol=0)
    assert not torch.equal(F.norm(), before[0]) and not torch.equal(F.logdet(0.1), before[1])


def test_what_was_computed_goes_with_the_matrix() -> None:
    """Without waiting for a garbage collector: it may be as large as all Jacobians."""
    matrix = _implicit(mlp())
    matrix.logdet(0.1)
    rows = weakref.ref(matrix._row_side.rows(matrix._batches))
    assert rows() is not None
    gc.disable()
    try:
        del matrix
        assert rows() is None
    finally:
        gc.enable()


def test_quadratic_forms_take_the_forward_pass_alone(
    few_examples: tuple[PMatImplicit, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, dense = few_examples
    v = PVector(matrix.layer_collection, _rows(matrix)[0])
    flat = v.get_flat_representation()
    assert relative_error(matrix.vTMv(v), flat @ dense @ flat) <= 1e-12

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.autograd, "grad", refused)
    assert relative_error((3 * matrix).vTMv(v), 3 * (flat @ dense @ flat)) <= 1e-12


def test_estimates_and_their_errors(few_examples: tuple[PMatImplicit, Tensor]) -> None:
    matrix, dense = few_examples
    trace = matrix.hutchinson_trace(200, torch.Generator().manual_seed(0))
    diagonal = matrix.hutchinson_diag(200, torch.Generator().manual_seed(1))
    assert abs(trace.value - dense.trace()) <= 4 * trace.standard_error
    assert trace.standard_error <= 0.2 * dense.trace()
    assert ((diagonal.value - dense.diagonal()).abs() <= 5 * diagonal.standard_error + 1e-12).all()
    density = matrix.spectral_density(20, len(dense), torch.Generator().manual_seed(2))
    estimate, expected = density.trace_of(torch.square), dense.square().sum()
    assert abs(estimate.value - expected) <= 4 * estimate.standard_error


def test_sums_are_lazy_from_either_side(few_examples: tuple[PMatImplicit, Tensor]) -> None:
    matrix, dense = few_examples
    diagonal = PMatDiag(data=torch.rand(len(dense), dtype=torch.float64), layer_collection=matrix.layer_collection)
    eye = PMatEye(layer_collection=matrix.layer_collection, scaling=0.5)
    right, identity = _rows(matrix, 1), torch.eye(len(dense), dtype=torch.float64)
    for total, expected in (
        (matrix + diagonal, dense + diagonal.get_dense_tensor()),
        (diagonal - matrix, diagonal.get_dense_tensor() - dense),
        (matrix + matrix, 2 * dense),
        (matrix + eye, dense + identity / 2),
        (eye + matrix, dense + identity / 2),
        (matrix - eye, dense - identity / 2),
    ):
        assert isinstance(total, PMatSum)
        assert relative_error(total.mv(right), right @ expected) <= 1e-10
        assert relative_error(total.trace(), expected.trace()) <= 1e-10
        assert relative_error(total.convert("dense").data, expected) <= 1e-10
    _check_solution(dense + identity / 2, (matrix + eye).solve(right, 0.1), right, 0.1)


def test_loaders_are_read_anew_and_leave_the_random_state() -> None:
    case = mlp(n_examples=7)
    loader: Any = DataLoader(TensorDataset(case.inputs), batch_size=3, shuffle=True)
    matrix, dense = _implicit(case, examples=loader), FIM(case.model, case.inputs, PMatDense).data
    state, right = torch.get_rng_state(), _rows(matrix)
    assert relative_error(matrix.mv(right), right @ dense) <= 1e-12
    assert relative_error(matrix.get_diag(), dense.diagonal()) <= 1e-12
    _check_solution(dense, matrix.solve(right, 0.1), right, 0.1)
    assert torch.equal(torch.get_rng_state(), state)
    assert matrix.n_examples == 7


def test_what_can_be_read_only_once_is_refused() -> None:
    case = mlp()

    def batches() -> Iterator[Tensor]:
        yield case.inputs

    with pytest.raises(ValueError, match="generator can be read only once; give one batch, a list of batches"):
        _implicit(case, examples=batches())
    with pytest.raises(TypeError, match="got int"):
        _implicit(case, examples=3)


def test_centring_is_refused() -> None:
    case = mlp()
    batch = (case.inputs, torch.arange(len(case.inputs)) % 3)
    with pytest.raises(UnsupportedOperationError, match="centred=False"):
        EmpiricalFIM(case.model, batch, "implicit", variant="classif_logits", centred=True)
    generator = EmpiricalFIM(case.model, batch, "dense", variant="classif_logits", centred=True).generator
    with pytest.raises(UnsupportedOperationError, match="centred=False"):
        PMatImplicit(generator, examples=batch)


def test_a_loader_of_changing_length_is_no_matrix() -> None:
    case = mlp()
    examples = [case.inputs[:3], case.inputs[3:]]
    matrix = _implicit(case, examples=examples)
    matrix.trace()
    examples.pop()
    with pytest.raises(ValueError, match="there were 7 examples in an earlier pass and 3 in this one"):
        matrix.mv(_rows(matrix))


def test_monte_carlo_draws_are_the_same_in_every_product() -> None:
    case = mlp()
    likelihood = MonteCarlo(ClassifLogits(), trials=2, seed=3)
    matrix, right = _implicit(case, likelihood), torch.empty(0)
    dense = FIM(case.model, case.inputs, PMatDense, variant=likelihood).data
    right = _rows(matrix)
    for _ in range(2):
        assert relative_error(matrix.mv(right), right @ dense) <= 1e-12
    assert relative_error(matrix.trace(), dense.trace()) <= 1e-12
    _check_solution(dense, matrix.solve(right, 0.1), right, 0.1)


def test_an_indefinite_metric() -> None:
    case = mlp()
    signs = torch.diag(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    likelihood = OutputMetric(lambda outputs: signs.expand(len(outputs), 3, 3), GaussianLikelihood())
    matrix, dense = _implicit(case, likelihood), FIM(case.model, case.inputs, PMatDense, variant=likelihood).data
    assert relative_error(matrix.mv(_rows(matrix)), _rows(matrix) @ dense) <= 1e-12
    assert relative_error(matrix.norm(), dense.norm()) <= 1e-12
    assert relative_error(matrix.norm(2), torch.linalg.matrix_norm(dense, 2)) <= 1e-10
    assert relative_error(matrix.get_diag(), dense.diagonal()) <= 1e-12
    with pytest.raises(NotPositiveDefiniteError, match="met a unit vector"):
        matrix.solve(_rows(matrix), 0.01)
    with pytest.raises(UnsupportedOperationError, match="unless the metric is positive"):
        matrix.logdet(0.1)


def test_more_directions_than_parameters_need_a_damping() -> None:
    matrix = _implicit(mlp(widths=(1, 1, 2), n_examples=20), "regression")
    dense = matrix.convert("dense")
    assert relative_error(matrix.logdet(0.1), dense.logdet(0.1)) <= 1e-10
    for undamped in (matrix.logdet, matrix.sample):
        with pytest.raises(
            UnsupportedOperationError, match="without damping, 40 directions do not say.*; give a regul"
        ):
            undamped(0)


def test_what_it_cannot_do_says_what_can() -> None:
    case = mlp()
    matrix = _implicit(case)
    for refused, message in (
        (lambda: matrix.update(case.inputs, 0.5), r"; use decay \* F"),
        (lambda: matrix.to(torch.float32), "; move the model"),
        (lambda: matrix.mm(matrix).trace(), r"the trace of a product .*; convert\('dense'\)"),
        (lambda: matrix.mm(matrix).solve(_rows(matrix)), "not symmetric"),
    ):
        with pytest.raises(UnsupportedOperationError, match=message):
            refused()
    assert matrix.to(torch.float64, "cpu") is matrix
    with pytest.raises(LayerCollectionMismatchError):
        matrix.solve(_rows(matrix), preconditioner=_implicit(mlp(widths=(2, 2))))


def test_a_dead_layer_and_constant_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    x = torch.ones(4, 2, dtype=torch.float64)
    generator = registry.generator("hooks")(model, "classif_logits")
    matrix, dense = PMatImplicit(generator, examples=x), FIM(model, x, PMatDense).data
    right = _rows(matrix)
    _check_solution(dense, matrix.solve(right), right, 1e-8)
    assert relative_error(matrix.logdet(0.1), (dense + 0.1 * torch.eye(len(dense)).double()).logdet()) <= 1e-10
    assert relative_error(matrix.norm(2), torch.linalg.matrix_norm(dense, 2)) <= 1e-10
    assert matrix.eigendecomposition(3).values[0] == pytest.approx(0, abs=1e-12)
