"""PMatKFAC: one Kronecker product for each layer."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import (
    FIM,
    Conv2dLayer,
    KroneckerFactors,
    KroneckerLayout,
    LayerCollection,
    LayerCollectionMismatchError,
    LinearLayer,
    NonFiniteError,
    NotPositiveDefiniteError,
    PMat,
    PVector,
    ShapeError,
    UnsupportedOperationError,
    random_pvector,
)
from nngeo_core.testing import (
    MODELS,
    Case,
    PMatAlgebraContract,
    PMatContract,
    block_diagonal,
    factors_of_parameters,
    fisher,
    kfac_factors,
    kronecker_block,
    relative_error,
)
from nngeo_core.testing.models import mlp
from nngeo_reprs import PMatEKFAC, PMatEye, PMatKFAC, PMatSum

LAYERS = LayerCollection({"fc": LinearLayer(2, 3)})
VARIANTS = ("classif_logits", "regression")


class TestPMatKFAC(PMatContract):
    representation = PMatKFAC
    unsupported = frozenset({"product_solve"})
    inverse_kind = "ekfac"

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        blocks = []
        for names in layers.parameter_names.values():
            a, g = factors_of_parameters(kfac_factors, case.model, case.inputs, names, variant)
            blocks.append(kronecker_block(a, g, has_bias=len(names) == 2))
        return torch.block_diag(*blocks)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_factors(self, case: Case, variant: str) -> None:
        matrix = FIM(case.model, case.inputs, PMatKFAC, variant=variant)
        for layer_id, factors in matrix.data.items():
            a, g = factors_of_parameters(
                kfac_factors, case.model, case.inputs, matrix.layer_collection.parameter_names[layer_id], variant
            )
            assert relative_error(factors.inputs, a) <= 1e-12
            assert relative_error(factors.outputs, g) <= 1e-12


class TestPMatKFACFromData(PMatAlgebraContract):
    unsupported = frozenset({"product_solve"})
    inverse_kind = "ekfac"

    def build(self, layers: LayerCollection, seed: int) -> PMat:
        generator = torch.Generator().manual_seed(seed)
        data = {}
        for layer_id, layer in layers.items():
            shape = layer.parameter_shapes()["weight"]
            groups = layer.groups if isinstance(layer, Conv2dLayer) else 1
            width = math.prod(shape[1:]) + ("bias" in layer.parameter_shapes())
            rows = torch.randn(groups, 9, width, generator=generator).double()
            columns = torch.randn(groups, 2, shape[0] // groups, generator=generator).double()
            data[layer_id] = (rows.mT @ rows, columns.mT @ columns)
        return PMatKFAC(data=data, layer_collection=layers)


def _vector(layers: LayerCollection) -> PVector:
    return random_pvector(layers, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _spd(size: int, seed: int = 0) -> Tensor:
    rows = torch.randn(2 * size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return rows.T @ rows / size


def _kfac(a: Tensor, g: Tensor) -> PMatKFAC:
    return PMatKFAC(data={"fc": (a, g)}, layer_collection=LAYERS)


def _residual(matrix: PMatKFAC, x: PVector, v: PVector, regul: float) -> float:
    found = matrix.mv(x).get_flat_representation() + regul * x.get_flat_representation()
    return relative_error(found, v.get_flat_representation())


@pytest.mark.parametrize("widths", [(5, 3), (5, 4, 6, 3), (2, 7, 1, 3)])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_kfac_is_exact_for_deep_linear_nets(widths: tuple[int, ...], bias: bool) -> None:
    case = mlp(widths, nn.Identity, bias)
    matrix = FIM(case.model, case.inputs, PMatKFAC, variant="regression")
    names = [name for name, _ in matrix.layer_collection.named_parameters(case.model)]
    sizes = [layer.numel() for layer in matrix.layer_collection.values()]
    expected = block_diagonal(fisher(case.model, case.inputs, names, "regression"), sizes)
    assert relative_error(matrix.get_dense_tensor(), expected) <= 1e-12


def test_bias_beside_the_weights_of_its_output_or_behind_all_weights() -> None:
    a, g = _spd(3), _spd(3, seed=1)
    matrix = _kfac(a, g)
    together = torch.kron(g, a)
    assert relative_error(matrix.get_dense_tensor(split_weight_bias=False), together) <= 1e-14
    assert relative_error(matrix.get_diag(split_weight_bias=False), together.diagonal()) <= 1e-14
    order = torch.tensor([0, 1, 3, 4, 6, 7, 2, 5, 8])
    assert relative_error(matrix.get_dense_tensor(), together[order][:, order]) <= 1e-14
    assert relative_error(matrix.get_diag(), together.diagonal()[order]) <= 1e-14


@pytest.mark.parametrize(
    "model", ["mlp", "conv-groups", "conv-depthwise", "positions-sequence", "tied-weight-own-bias"]
)
def test_factored_damping(model: str) -> None:
    case, regul = MODELS[model](), 0.03
    matrix = FIM(case.model, case.inputs, PMatKFAC)
    v, parts = _vector(matrix.layer_collection), []
    for layer_id, place in matrix.layer_collection.slices().items():
        a, g = matrix.data[layer_id].inputs, matrix.data[layer_id].outputs
        mean_a, mean_g = a.diagonal(dim1=1, dim2=2).mean(), g.diagonal(dim1=1, dim2=2).mean()
        pi = (mean_a / mean_g).sqrt()
        damped_a = a + pi * regul**0.5 * torch.eye(a.shape[1], dtype=a.dtype)
        damped_g = g + regul**0.5 / pi * torch.eye(g.shape[1], dtype=g.dtype)
        block = kronecker_block(
            damped_a, damped_g, has_bias=len(matrix.layer_collection.parameter_names[layer_id]) == 2
        )
        parts.append(torch.linalg.solve(block, v.get_flat_representation()[place]))
    found = matrix.solve(v, regul, use_pi=True).get_flat_representation()
    assert relative_error(found, torch.cat(parts)) <= 1e-10


@pytest.mark.parametrize("dead", ["inputs", "outputs", "both"])
@pytest.mark.parametrize("use_pi", [False, True])
def test_a_dead_layer_is_damped(dead: str, use_pi: bool) -> None:
    a = _spd(3) * (dead == "outputs")
    g = _spd(3, seed=1) * (dead == "inputs")
    v, regul = _vector(LAYERS), 0.04
    x = _kfac(a, g).solve(v, regul, use_pi).get_flat_representation()
    eye = torch.eye(3, dtype=torch.float64)
    shifted = kronecker_block((a + 0.2 * eye)[None], (g + 0.2 * eye)[None], has_bias=True)
    damped = shifted if use_pi else regul * torch.eye(9, dtype=torch.float64)
    assert relative_error(damped @ x, v.get_flat_representation()) <= 1e-12


@pytest.mark.parametrize("use_pi", [False, True])
def test_a_layer_of_one_parameter(use_pi: bool) -> None:
    layers = LayerCollection({"fc": LinearLayer(1, 1, bias=False)})
    pair = (torch.tensor([[3.0]]), torch.tensor([[12.0]]))
    matrix = PMatKFAC(data={"fc": pair}, layer_collection=layers)
    x = matrix.solve(PVector(layers, vector_repr=torch.tensor([1.0])), 4.0, use_pi).get_flat_representation()
    expected = (3 + 0.5 * 2) * (12 + 2 / 0.5) if use_pi else 36 + 4  # pi = sqrt(3 / 12)
    assert x.tolist() == pytest.approx([1 / expected])


def test_without_damping_pi_changes_nothing() -> None:
    matrix, v = _kfac(_spd(3), _spd(3, seed=1)), _vector(LAYERS)
    plain, factored = matrix.solve(v, 0.0), matrix.solve(v, 0.0, use_pi=True)
    assert relative_error(factored.get_flat_representation(), plain.get_flat_representation()) <= 1e-14
    assert _residual(matrix, plain, v, 0.0) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("model", [name for name in MODELS if name != "linear-one-layer"])
def test_a_singular_block_is_refused_and_the_damping_named_works(model: str, dtype: torch.dtype) -> None:
    case = MODELS[model]().to(dtype)
    matrix = FIM(case.model, case.inputs, PMatKFAC)  # a softmax does not see a shift: the last G is singular
    v, layers = random_pvector(matrix.layer_collection, dtype=dtype), len(matrix.layer_collection)
    assert layers > 1
    with pytest.raises(NotPositiveDefiniteError, match=r"the block of layer '.+' \+ 0 I is singular") as caught:
        matrix.solve(v, regul=0)
    regul = float(re.search(r"regul=(\S+) or more", str(caught.value))[1])  # type: ignore[index]
    dense = matrix.get_dense_tensor().double()
    largest = float(torch.linalg.eigvalsh(dense).max())
    regul = max(regul, 10 * torch.finfo(dtype).eps * largest)  # the message is about the first singular layer
    x = matrix.solve(v, regul).get_flat_representation().double()
    residual = dense @ x + regul * x - v.get_flat_representation().double()
    assert residual.norm() <= 300 * torch.finfo(dtype).eps * (largest * x.norm() + v.norm())


def test_a_singular_factor_needs_no_more_damping_than_rounding() -> None:
    a = _spd(3)
    g = torch.ones(3, 3, dtype=torch.float64)
    matrix, v = _kfac(a, g), _vector(LAYERS)
    largest = float(3 * torch.linalg.eigvalsh(a).max())
    eps = torch.finfo(torch.float64).eps
    with pytest.raises(NotPositiveDefiniteError, match="the block of layer 'fc'"):
        matrix.solve(v, regul=0.5 * eps * largest)
    regul = 4 * eps * largest
    null = torch.tensor([1, 1, -1, -1, 0, 0, 1, -1, 0], dtype=torch.float64)  # 2 weights of each output, then 3 biases
    x = matrix.solve(PVector(LAYERS, vector_repr=null), regul).get_flat_representation()
    assert relative_error(x * regul, null) <= 1e-6


def test_what_is_no_kronecker_product_raises() -> None:
    matrix = _kfac(_spd(3), _spd(3, seed=1))
    with pytest.raises(
        UnsupportedOperationError, match=r"the inverse of a PMatKFAC that is not symmetric.*; use solve"
    ):
        matrix.mm(matrix).inverse(0)
    with pytest.raises(
        UnsupportedOperationError, match="damped inverse of a product.*; solve with both matrices in turn"
    ):
        matrix.mm(matrix).solve(_vector(LAYERS), 0.1)
    with pytest.raises(UnsupportedOperationError, match="the sum with a multiple.*not symmetric.*; add the products"):
        matrix.mm(matrix) + PMatEye(layer_collection=LAYERS, scaling=1.0)


def test_what_keeps_the_eigenvectors_alone_is_in_their_basis() -> None:
    matrix, v = _kfac(_spd(3), _spd(3, seed=1)), _vector(LAYERS)
    eye = torch.eye(9, dtype=torch.float64)
    for regul in (0.0, 0.1):
        inverse = matrix.inverse(regul)
        assert isinstance(inverse, PMatEKFAC)
        assert relative_error(inverse.get_dense_tensor() @ (matrix.get_dense_tensor() + regul * eye), eye) <= 1e-11
        assert _residual(matrix, inverse.mv(v), v, regul) <= 1e-11
    assert isinstance(matrix + PMatEye(layer_collection=LAYERS, scaling=0.1), PMatEKFAC)
    assert isinstance(matrix + matrix, PMatSum)
    assert relative_error(matrix.convert("ekfac").get_dense_tensor(), matrix.get_dense_tensor()) <= 1e-12
    with pytest.raises(NotPositiveDefiniteError, match="the block of layer 'fc'"):
        _kfac(_spd(3), torch.ones(3, 3, dtype=torch.float64)).inverse(0)


def test_roots_and_pseudo_inverses_cut_each_factor_off() -> None:
    a, rows = _spd(3), torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    matrix = _kfac(a, rows.T @ rows)
    root, inverse = matrix.sqrt(), matrix.pinv()
    assert isinstance(root, PMatKFAC) and isinstance(inverse, PMatKFAC)
    assert relative_error(root.mm(root).get_dense_tensor(), matrix.get_dense_tensor()) <= 1e-12
    assert relative_error(inverse.data["fc"].outputs[0], rows.T @ rows / (rows @ rows.T) ** 2) <= 1e-12
    product = matrix.mm(_kfac(_spd(3, seed=4), _spd(3, seed=5)))
    expected = torch.linalg.pinv(product.get_dense_tensor(), rtol=1e-12)
    assert relative_error(product.pinv().get_dense_tensor(), expected) <= 1e-10
    assert relative_error(product.norm(2), torch.linalg.matrix_norm(product.get_dense_tensor(), 2)) <= 1e-12
    with pytest.raises(NotPositiveDefiniteError, match="a factor of layer 'fc' has the negative eigenvalue"):
        (-matrix).sqrt()


def test_groups_of_different_scales_have_cut_offs_of_their_own() -> None:
    layout = KroneckerLayout(2, 1, 2, has_bias=False)
    layers = LayerCollection({"conv": Conv2dLayer(4, 2, 1, bias=False, groups=2)})
    inputs = torch.eye(2).double().expand(2, 2, 2) * torch.tensor([1.0, 1e-20], dtype=torch.float64).view(2, 1, 1)
    factors = KroneckerFactors(inputs, torch.tensor([1e-20, 1.0], dtype=torch.float64).view(2, 1, 1), layout)
    matrix = PMatKFAC(data={"conv": factors}, layer_collection=layers)
    assert relative_error(matrix.pinv().get_diag(), torch.full((4,), 1e20, dtype=torch.float64)) <= 1e-12
    assert relative_error(matrix.sqrt().get_diag(), torch.full((4,), 1e-10, dtype=torch.float64)) <= 1e-12


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_an_update_averages_the_factors_one_by_one(decay: float) -> None:
    case = MODELS["mlp"]()
    matrix = FIM(case.model, case.inputs, PMatKFAC)
    before, new = matrix.data, FIM(case.model, case.inputs[:3] - 1, PMatKFAC)
    matrix.update(case.inputs[:3] - 1, decay)
    assert matrix.n_examples == 10
    for layer_id, factors in matrix.data.items():
        for name in ("inputs", "outputs"):
            old, other = getattr(before[layer_id], name), getattr(new.data[layer_id], name)
            assert relative_error(getattr(factors, name), decay * old + (1 - decay) * other) <= 1e-12


def test_an_update_with_a_layer_that_was_dead() -> None:
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.use = nn.Linear(3, 2), nn.Linear(3, 2), "both"

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.first(x) + (self.second(x) if self.use == "both" else 0)
            return outputs

    model, x = Switched().double(), torch.randn(4, 3, dtype=torch.float64)
    whole = FIM(model, x, PMatKFAC, variant="regression")
    alive = whole.data["second"]
    model.use = "first"
    matrix = FIM(model, x, PMatKFAC, variant="regression")
    whole.update(x, 0.75)
    assert relative_error(whole.data["second"].inputs, 0.75 * alive.inputs) <= 1e-12
    assert relative_error(whole.data["second"].outputs, 0.75 * alive.outputs) <= 1e-12
    model.use = "both"
    matrix.update(x, 0.75)
    assert relative_error(matrix.data["second"].inputs, 0.25 * alive.inputs) <= 1e-12
    assert relative_error(matrix.data["second"].outputs, 0.25 * alive.outputs) <= 1e-12


def test_a_product_is_solved_without_symmetry() -> None:
    first, second, v = _kfac(_spd(3), _spd(3, seed=1)), _kfac(_spd(3, seed=2), _spd(3, seed=3)), _vector(LAYERS)
    product = first.mm(second)
    assert not product.symmetric
    assert _residual(product, product.solve(v, 0), v, 0.0) <= 1e-11
    singular = first.mm(_kfac(_spd(3), torch.ones(3, 3, dtype=torch.float64)))
    with pytest.raises(NotPositiveDefiniteError, match="a factor of layer 'fc'"):
        singular.solve(v, 0)


def test_groups_are_solved_apart_in_a_product() -> None:
    case = MODELS["conv-depthwise"]()
    layers = LayerCollection()
    layers.add_layer_from_model(case.model, case.model[0])
    data = {
        "0": KroneckerFactors(
            torch.stack([_spd(7, seed) for seed in range(4)]),
            torch.stack([_spd(2, seed) for seed in range(4)]),
            KroneckerLayout(4, 2, 6, has_bias=True),
        )
    }
    matrix = PMatKFAC(data=data, layer_collection=layers)
    v = _vector(layers)
    assert _residual(matrix.mm(matrix), matrix.mm(matrix).solve(v, 0), v, 0.0) <= 1e-9


class _SkipsALayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.used(inputs)
        return outputs


def test_a_layer_that_is_never_called_has_zero_factors() -> None:
    model, x = _SkipsALayer().double(), torch.randn(4, 3, dtype=torch.float64)
    matrix = FIM(model, x, PMatKFAC, variant="regression")
    place = matrix.layer_collection.slices()["unused"]
    assert matrix.get_dense_tensor()[place].count_nonzero() == 0
    assert matrix.get_diag()[place].count_nonzero() == 0
    v = _vector(matrix.layer_collection)
    for use_pi in (False, True):
        x_unused = matrix.solve(v, 0.25, use_pi).get_flat_representation()[place]
        assert relative_error(x_unused, v.get_flat_representation()[place] / 0.25) <= 1e-12
    assert (
        relative_error(matrix.mm(matrix).get_dense_tensor(), matrix.get_dense_tensor() @ matrix.get_dense_tensor())
        <= 1e-12
    )
    sums = PMatKFAC.accumulator(matrix.layer_collection)
    with pytest.raises(ValueError, match="no examples"):
        PMatKFAC(matrix.generator, examples=[])
    assert sums.n_examples == 0


def test_data_as_pairs_or_factors() -> None:
    a, g = _spd(3), _spd(3, seed=1)
    factors = KroneckerFactors(a[None], g[None], KroneckerLayout(1, 3, 2, has_bias=True))
    pairs = [{"fc": (a, g)}, {"fc": (a[None], g[None])}, {"fc": factors}]
    for data in pairs:
        found = PMatKFAC(data=data, layer_collection=LAYERS).get_dense_tensor()
        assert relative_error(found, _kfac(a, g).get_dense_tensor()) == 0


@pytest.mark.parametrize(
    ("a", "g", "given"),
    [
        ((2, 2), (3, 3), r"\(1, 2, 2\) and \(1, 3, 3\)"),
        ((3, 3), (2, 2), r"\(1, 3, 3\) and \(1, 2, 2\)"),
        ((2, 3), (3, 3), r"\(1, 2, 3\) and \(1, 3, 3\)"),
        ((2, 3, 3), (1, 3, 3), r"\(2, 3, 3\) and \(1, 3, 3\)"),
    ],
)
def test_factors_of_other_shapes_are_refused(a: tuple[int, ...], g: tuple[int, ...], given: str) -> None:
    with pytest.raises(ShapeError, match=rf"layer 'fc' with parameters .* shapes {given}; expected \(q, A, A\)"):
        _kfac(torch.ones(a), torch.ones(g))


@pytest.mark.parametrize(("data", "given"), [({"other": ()}, r"\['other'\]"), ({}, r"\[\]"), ([1], "list")])
def test_data_of_other_layers_is_refused(data: object, given: str) -> None:
    with pytest.raises(LayerCollectionMismatchError, match=rf"mapping with the layers \['fc'\], got {given}"):
        PMatKFAC(data=data, layer_collection=LAYERS)


def test_nan_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="layer 'fc'"):
        _kfac(torch.full((3, 3), float("nan")), torch.ones(3, 3))


def test_solve_keeps_eigenvalues_far_below_the_largest() -> None:
    """Genuine ones, though below d eps of the largest in float32."""
    width = 1000
    inputs = torch.diag(torch.cat([torch.ones(1), torch.full((width - 1,), 5e-5)]))
    layers = LayerCollection({"fc": LinearLayer(width, 1, bias=False)})
    matrix = PMatKFAC(data={"fc": (inputs, torch.ones(1, 1))}, layer_collection=layers)
    unit = torch.zeros(width)
    unit[-1] = 1
    found = matrix.solve(PVector(layers, vector_repr=unit), 1e-6).get_flat_representation()[-1]
    assert relative_error(found, torch.tensor(1 / 5.1e-5)) <= 1e-5


def test_decomposing_ahead_leaves_nothing_to_decompose(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    F = FIM(nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64), PMatKFAC)
    v = random_pvector(F.layer_collection, dtype=torch.float64)
    expected = F.solve(v, 0.1).get_flat_representation()
    again = PMatKFAC(data=dict(F.data), layer_collection=F.layer_collection)
    assert again.decompose() is again
    monkeypatch.setattr("nngeo_reprs.kfac.spectrum", lambda factors: pytest.fail("decomposed again"))
    torch.testing.assert_close(again.solve(v, 0.1).get_flat_representation(), expected, rtol=0, atol=0)
    with pytest.raises(UnsupportedOperationError, match="product"):
        F.mm(F).decompose()


def test_a_first_solution_under_inference_mode_leaves_later_ones_differentiable() -> None:
    torch.manual_seed(0)
    F = FIM(nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64), PMatKFAC)
    flat = torch.randn(8, dtype=torch.float64)
    with torch.inference_mode():
        F.solve(PVector(F.layer_collection, vector_repr=flat), 0.1)
    flat.requires_grad_()
    F.solve(PVector(F.layer_collection, vector_repr=flat), 0.1).get_flat_representation().sum().backward()
    expected = F.solve(PVector(F.layer_collection, vector_repr=torch.ones(8, dtype=torch.float64)), 0.1)
    torch.testing.assert_close(flat.grad, expected.get_flat_representation())
