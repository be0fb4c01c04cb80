"""PMatQuasiDiag: the diagonal, and what is between weights and biases."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import (
    FIM,
    LayerCollection,
    LayerCollectionMismatchError,
    LinearLayer,
    NonFiniteError,
    NotPositiveDefiniteError,
    PMat,
    PVector,
    ShapeError,
    random_pvector,
)
from nngeo_core.testing import (
    MODELS,
    Case,
    PMatAlgebraContract,
    PMatContract,
    fisher,
    output_jacobian,
    quasi_diagonal,
    relative_error,
)
from nngeo_core.testing.pmat_algebra import _check_solution
from nngeo_reprs import PMatEye, PMatQuasiDiag
from nngeo_reprs.arrow import ArrowBlock

LAYERS = LayerCollection({"fc": LinearLayer(2, 3), "head": LinearLayer(3, 1, bias=False)})
UNSUPPORTED = frozenset({"inverse", "mm", "pinv", "sqrt"})


def bias_of_each_weight(shapes: list[torch.Size]) -> list[int]:
    """Places of the biases of weights stored by output, if there are both."""
    if len(shapes) < 2 or len(shapes[0]) < 2:
        return []
    weights, each = shapes[0].numel(), shapes[0][1:].numel()
    return [weights + k // each for k in range(weights)]


class TestPMatQuasiDiag(PMatContract):
    representation = PMatQuasiDiag
    unsupported = UNSUPPORTED

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        parameters = dict(case.model.named_parameters())
        names = tuple(name for own in layers.parameter_names.values() for name in own)
        whole, blocks = fisher(case.model, case.inputs, names, variant), []
        for own, place in zip(layers.parameter_names.values(), layers.slices().values(), strict=True):
            bias_of = bias_of_each_weight([parameters[name].shape for name in own])
            blocks.append(quasi_diagonal(whole[place, place], bias_of))
        return torch.block_diag(*blocks)

    def test_logdet(self, matrix: PMat) -> None:
        """That of the definite ones; of the others none, and the damping that is named is enough."""
        if _is_definite(matrix, 0.1):
            super().test_logdet(matrix)
        else:
            _check_named_damping(matrix, 0.1)

    def test_sample(self, matrix: PMat) -> None:
        """Of the definite ones; the others raise."""
        if _is_definite(matrix, 0.5):
            super().test_sample(matrix)
        else:
            with pytest.raises(NotPositiveDefiniteError, match="is not positive definite"):
                matrix.sample(0.5)


def _is_definite(matrix: PMat, regul: float) -> bool:
    return bool(torch.linalg.eigvalsh(matrix.get_dense_tensor())[0] + regul > 0)


def _check_named_damping(matrix: PMat, regul: float) -> None:
    for _ in matrix.layer_collection:  # each message is about the first layer that is not definite
        try:
            matrix.logdet(regul)
        except NotPositiveDefiniteError as error:
            assert "is not positive definite" in str(error)
            regul = float(str(error).split("regul=")[1].split(" or more")[0])
    assert matrix.logdet(regul).isfinite()


class TestPMatQuasiDiagFromData(PMatAlgebraContract):
    unsupported = UNSUPPORTED

    def build(self, layers: LayerCollection, seed: int) -> PMat:
        generator, data = torch.Generator().manual_seed(seed), {}
        for layer_id, layer in layers.items():
            structure = layer.structure()
            assert structure is not None and structure.layout is not None
            layout = structure.layout
            squares = torch.rand(layer.numel(), generator=generator, dtype=torch.float64)
            data[layer_id] = ArrowBlock.from_flat(squares, None, None)
            if layout.has_bias:
                cross = torch.rand(layout.weight_numel, generator=generator, dtype=torch.float64) - 0.5
                block = ArrowBlock.from_flat(squares + 0.5, cross / layout.inputs, layout)
                data[layer_id] = block.shifted(0.2)
        return PMatQuasiDiag(data=data, layer_collection=layers)


def quasi_diag(seed: int = 0, cross: float = 0.4, shift: float = 0.5) -> PMatQuasiDiag:
    generator, layout = torch.Generator().manual_seed(seed), LinearLayer(2, 3).structure().layout
    squares = torch.rand(9, generator=generator, dtype=torch.float64) + shift
    entries = cross * (1 + torch.rand(6, generator=generator, dtype=torch.float64))
    head = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
    data = {"fc": ArrowBlock.from_flat(squares, entries, layout), "head": ArrowBlock.from_flat(head, None, None)}
    return PMatQuasiDiag(data=data, layer_collection=LAYERS)


def vector(seed: int = 0) -> PVector:
    return random_pvector(LAYERS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("regul", [0.0, 0.01, 1.0])
def test_indefinite_matrices_are_solved_too(regul: float) -> None:
    matrix = quasi_diag(cross=2.0)
    dense = matrix.get_dense_tensor()
    assert torch.linalg.eigvalsh(dense)[0] < -1
    _check_solution(dense, matrix.solve(vector(), regul), vector(), regul)
    with pytest.raises(
        NotPositiveDefiniteError, match="the block of layer 'fc'.* is not positive definite.*; use regul="
    ):
        matrix.logdet(regul)
    with pytest.raises(NotPositiveDefiniteError, match="is not positive definite"):
        matrix.sample(regul)
    _check_named_damping(matrix, regul)


def test_weights_without_diagonal_are_not_eliminated_first() -> None:
    """A difference of matrices: the weight's entry is gone, and the block is as regular as can be."""
    block = quasi_diag().data["fc"]
    diagonal = block.diagonal.clone()
    diagonal[0, 0, 0], diagonal[0, 1, 1] = 1e-18, 0.0
    matrix = PMatQuasiDiag(
        data={**quasi_diag().data, "fc": ArrowBlock(diagonal, block.cross, block.layout)}, layer_collection=LAYERS
    )
    dense, rows = matrix.get_dense_tensor(), torch.randn(2, 3, 12, dtype=torch.float64)
    assert (
        relative_error(matrix.solve(rows, 0.0), torch.linalg.solve(dense, rows.flatten(0, 1).T).T.view_as(rows))
        <= 1e-10
    )
    assert torch.autograd.gradcheck(lambda v: matrix.solve(v, 0.0), rows[0].requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_singular_neurons_are_refused_and_the_damping_named_works(dtype: torch.dtype) -> None:
    case = MODELS["mlp-one-example"]().to(dtype)
    model, x = nn.Linear(1, 3).to(dtype), case.inputs[:, :1]  # one example: each neuron's block has rank one
    matrix = FIM(model, x, PMatQuasiDiag, variant="regression")
    v = random_pvector(matrix.layer_collection, dtype=dtype)
    for solve in (
        lambda regul: matrix.solve(v, regul),
        lambda regul: matrix.solve(v, regul, method="ollivier"),
        lambda regul: matrix.logdet(regul),
    ):
        with pytest.raises(NotPositiveDefiniteError, match=r"regul=\S+ or more") as caught:
            solve(0.0)
        solve(float(str(caught.value).split("regul=")[-1].split(" or more")[0]))


def test_a_zero_on_the_diagonal_is_singular() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    with torch.no_grad():
        model[0].bias.fill_(-1e6)
    matrix = FIM(model, torch.randn(4, 2, dtype=torch.float64), PMatQuasiDiag, variant="regression")
    v = random_pvector(matrix.layer_collection, dtype=torch.float64)
    with pytest.raises(NotPositiveDefiniteError, match="the block of layer '0'"):
        matrix.solve(v, 0.0)
    assert relative_error(matrix.solve(v, 0.5).get_flat_representation(), 2 * v.get_flat_representation()) <= 1e-12


def test_ollivier_s_elimination() -> None:
    matrix, v, regul = quasi_diag(), vector(), 0.1
    dense = matrix.get_dense_tensor() + regul * torch.eye(12, dtype=torch.float64)
    right, expected = v.get_flat_representation(), torch.empty(12, dtype=torch.float64)
    expected[9:] = right[9:] / dense.diagonal()[9:]
    for neuron in range(3):
        bias, weights = 6 + neuron, [2 * neuron, 2 * neuron + 1]
        for w in weights:
            pair = torch.tensor([w, bias])
            expected[w] = torch.linalg.solve(dense[pair][:, pair], right[pair])[0]
        expected[bias] = (right[bias] - dense[bias, weights] @ expected[weights]) / dense[bias, bias]
    found = matrix.solve(v, regul, method="ollivier")
    assert relative_error(found.get_flat_representation(), expected) <= 1e-12
    assert matrix.solve(right.expand(2, 3, 12), regul, method="ollivier").shape == (2, 3, 12)
    with pytest.raises(ValueError, match="method is one of 'exact', 'ollivier'; got 'lu'"):
        matrix.solve(v, method="lu")


def test_with_one_weight_his_elimination_is_exact() -> None:
    layers = LayerCollection({"fc": LinearLayer(1, 2)})
    layout = layers["fc"].structure().layout  # type: ignore[union-attr]
    squares, cross = torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), torch.tensor([0.5, -1.0]).double()
    matrix = PMatQuasiDiag(data={"fc": ArrowBlock.from_flat(squares, cross, layout)}, layer_collection=layers)
    v = random_pvector(layers, dtype=torch.float64)
    exact, pairs = matrix.solve(v, 0.1), matrix.solve(v, 0.1, method="ollivier")
    assert relative_error(pairs.get_flat_representation(), exact.get_flat_representation()) <= 1e-12


def _transposed() -> tuple[nn.Module, Tensor, str, list[int]]:
    module = nn.ConvTranspose2d(4, 6, (2, 1), groups=2)
    places = torch.arange(4 * 3 * 2).view(2, 2, 3, 2)  # group, input, output, pixel
    biases = torch.arange(6).view(2, 1, 3, 1).expand_as(places)
    return (
        nn.Sequential(module, nn.Flatten(), nn.Linear(54, 2)),
        torch.randn(5, 4, 2, 3),
        "0",
        (24 + biases).flatten().tolist(),
    )


def _normalisation(module: nn.Module, width: int) -> Callable[[], tuple[nn.Module, Tensor, str, list[int]]]:
    return lambda: (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), module, nn.Tanh(), nn.Linear(4, 2)).eval(),
        torch.randn(5, 3),
        "2",
        [width + k for k in range(width)],
    )


LAYER_TYPES: dict[str, Callable[[], tuple[nn.Module, Tensor, str, list[int]]]] = {
    "transposed-convolution": _transposed,
    "convolution-1d": lambda: (
        nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 2)),
        torch.randn(5, 2, 4),
        "0",
        [12 + k // 4 for k in range(12)],
    ),
    "layer-norm": _normalisation(nn.LayerNorm(4), 4),
    "batch-norm": _normalisation(nn.BatchNorm1d(4), 4),
    "group-norm": _normalisation(nn.GroupNorm(2, 4), 4),
    "embedding": lambda: (
        nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)),
        torch.randint(5, (4, 2)),
        "0",
        [],
    ),
    "rms-norm": lambda: (nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.Linear(4, 2)), torch.randn(5, 3), "1", []),
    "attention": lambda: (
        _Attention(),
        torch.randn(5, 3, 4),
        "attention.in_proj_weight",
        [48 + k // 4 for k in range(48)],
    ),
    "bilinear": lambda: (_Bilinear(), torch.randn(5, 3), "bilinear", []),
}


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.attention(x, x, x)[0].mean(1)
        return outputs


class _Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.bilinear(x, torch.tanh(x))
        return outputs


@pytest.mark.parametrize("kind", LAYER_TYPES)
def test_pairs_of_each_layer_type(kind: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x, layer_id, bias_of = LAYER_TYPES[kind]()
    model, x = model.double(), x.double() if x.is_floating_point() else x
    matrix = FIM(model, x, PMatQuasiDiag, variant="regression")
    layer = next(name for name in matrix.layer_collection if name.startswith(layer_id.split(".")[0]))
    names = matrix.layer_collection.parameter_names[layer]
    jacobian = output_jacobian(model, x, names).flatten(0, 1)
    expected = quasi_diagonal(jacobian.T @ jacobian / len(x), bias_of)
    place = matrix.layer_collection.slices()[layer]
    assert relative_error(matrix.get_dense_tensor()[place, place], expected) <= 1e-10


def test_sums_with_a_layer_that_was_never_called() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.skip = nn.Linear(3, 2), nn.Linear(3, 2), True

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.used(x) if self.skip else self.used(x) + self.unused(x)
            return outputs

    model, x = Skips().double(), torch.randn(4, 3, dtype=torch.float64)
    first = FIM(model, x, PMatQuasiDiag, variant="regression")
    model.skip = False
    second = FIM(model, x, PMatQuasiDiag, variant="regression")
    for total in (first + second, second + first):
        assert isinstance(total, PMatQuasiDiag)
        assert relative_error(total.get_dense_tensor(), first.get_dense_tensor() + second.get_dense_tensor()) <= 1e-14
    first.update(x, 0.75)
    place = first.layer_collection.slices()["unused"]
    assert relative_error(first.get_dense_tensor()[place], second.get_dense_tensor()[place] / 4) <= 1e-12


def test_signed_directions_subtract() -> None:
    case = MODELS["mlp"]()
    matrix = FIM(case.model, case.inputs, PMatQuasiDiag)
    assert matrix.generator is not None
    sums = PMatQuasiDiag.accumulator(matrix.layer_collection)
    for batch in matrix.generator.stream([case.inputs]):
        for sign in (1, 1, -1):
            sums.update(type(batch)(**{**vars(batch), "sign": sign}))
    found = PMatQuasiDiag(data=sums.finalize(), layer_collection=matrix.layer_collection)
    assert relative_error(3 * found.get_dense_tensor(), matrix.get_dense_tensor()) <= 1e-12


def test_eigenvectors_of_chosen_eigenvalues() -> None:
    matrix = quasi_diag(cross=1.5)
    found, dense = matrix.eigendecomposition(5), matrix.get_dense_tensor()
    vectors = found.vectors(slice(1, 4))
    assert relative_error(vectors @ dense, found.values[1:4].unsqueeze(1) * vectors) <= 1e-12
    shifted = matrix - PMatEye(layer_collection=LAYERS, scaling=0.3)
    assert isinstance(shifted, PMatQuasiDiag)
    assert relative_error(shifted.eigendecomposition().values, matrix.eigendecomposition().values - 0.3) <= 1e-12


def test_bad_data_are_refused() -> None:
    good = quasi_diag().data
    wrong = ArrowBlock(good["fc"].diagonal, good["fc"].cross[..., :1], good["fc"].layout)
    with pytest.raises(
        ShapeError, match=r"layer 'fc' with 9 parameters: got .* shapes \(1, 3, 3\) and \(1, 3, 1\); expected"
    ):
        PMatQuasiDiag(data={**good, "fc": wrong}, layer_collection=LAYERS)
    with pytest.raises(NonFiniteError, match="layer 'head': the diagonal or the cross"):
        PMatQuasiDiag(data={**good, "head": good["head"].shifted(float("nan"))}, layer_collection=LAYERS)
    with pytest.raises(TypeError, match="layer 'head': the data of a PMatQuasiDiag are ArrowBlocks, got Tensor"):
        PMatQuasiDiag(data={**good, "head": torch.ones(3)}, layer_collection=LAYERS)
    with pytest.raises(LayerCollectionMismatchError, match=r"mapping with the layers \['fc', 'head'\], got list"):
        PMatQuasiDiag(data=[1], layer_collection=LAYERS)
