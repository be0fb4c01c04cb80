"""PMatEKFAC: blocks that are diagonal in a Kronecker-factored eigenbasis."""

from collections.abc import Callable, Iterable
from typing import ClassVar

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
    ekfac_block,
    factors_of_parameters,
    fisher,
    kfac_factors,
    relative_error,
)
from nngeo_core.testing.pmat_algebra import _check_solution
from nngeo_core.testing.pmat_contract import _matrix
from nngeo_reprs import PMatEKFAC, PMatEye, PMatKFAC, PMatSum
from nngeo_reprs.kronecker_basis import EigenBlock

LAYERS = LayerCollection({"fc": LinearLayer(2, 3)})


class EKFACContract:
    """What changes for bases that belong to their eigenvalues."""

    oracle: ClassVar[Callable[..., tuple[Tensor, Tensor]]] = staticmethod(kfac_factors)

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        names = tuple(name for own in layers.parameter_names.values() for name in own)
        whole, blocks = fisher(case.model, case.inputs, names, variant), []
        for own, place in zip(layers.parameter_names.values(), layers.slices().values(), strict=True):
            a, g = factors_of_parameters(self.oracle, case.model, case.inputs, own, variant)
            blocks.append(ekfac_block(whole[place, place], a, g, has_bias=len(own) == 2))
        return torch.block_diag(*blocks)

    def tensors_to_change(self, matrix: PMat) -> Iterable[Tensor]:
        return [block.values for block in matrix.data.values()]


class TestPMatEKFAC(EKFACContract, PMatContract):
    representation = PMatEKFAC
    unsupported = frozenset({"mm"})

    def test_trace_and_blocks_in_the_basis_are_those_of_the_fisher_matrix(self, case: Case, matrix: PMat) -> None:
        assert isinstance(matrix, PMatEKFAC)
        exact = FIM(case.model, case.inputs, "blockdiag")
        assert relative_error(matrix.trace(), exact.trace()) <= 1e-10
        for layer_id, vectors in matrix.get_KFE().items():
            in_basis = (vectors.T @ exact.data[layer_id] @ vectors).diagonal()
            assert relative_error(matrix.data[layer_id].values.flatten(), in_basis) <= 1e-10
        kfac = _matrix(PMatKFAC, case, "classif_logits")
        nearest, other = ((m.get_dense_tensor() - exact.get_dense_tensor()).norm() for m in (matrix, kfac))
        assert nearest <= other + 1e-12 * exact.frobenius_norm()


def kfac_data(layers: LayerCollection, seed: int) -> PMatKFAC:
    generator, data = torch.Generator().manual_seed(seed), {}
    for layer_id, layer in layers.items():
        structure = layer.structure()
        assert structure is not None and structure.layout is not None
        layout = structure.layout
        rows = torch.randn(layout.groups, 9, layout.input_width, generator=generator).double()
        columns = torch.randn(layout.groups, 2, layout.outputs, generator=generator).double()
        data[layer_id] = KroneckerFactors(rows.mT @ rows, columns.mT @ columns, layout)
    return PMatKFAC(data=data, layer_collection=layers)


def basis(layers: LayerCollection) -> PMatEKFAC:
    found: PMatEKFAC = kfac_data(layers, 0).convert("ekfac")
    return found


class TestPMatEKFACFromData(EKFACContract, PMatAlgebraContract):
    """All in one basis, so that products and sums stay in it."""

    def build(self, layers: LayerCollection, seed: int) -> PMat:
        generator = torch.Generator().manual_seed(seed)
        data = {}
        for layer_id, block in basis(layers).data.items():
            values = torch.rand(block.values.shape, generator=generator, dtype=torch.float64)
            data[layer_id] = EigenBlock(block.basis, values * (values > 0.3))
        return PMatEKFAC(data=data, layer_collection=layers)

    def test_sums_and_products_stay_in_the_basis(self, matrix: PMat, other: PMat) -> None:
        for found in (matrix + other, matrix - other, matrix.mm(other), matrix + 2 * matrix.inverse(0.1)):
            assert isinstance(found, PMatEKFAC)
            assert found.symmetric


def case_matrix(model: str) -> PMatEKFAC:
    case = MODELS[model]()
    found = FIM(case.model, case.inputs, PMatEKFAC)
    assert isinstance(found, PMatEKFAC)
    return found


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("model", ["mlp", "conv-groups", "positions-sequence", "transposed"])
def test_eigenvectors_written_out(model: str, split: bool) -> None:
    if model == "transposed":
        net = nn.Sequential(nn.ConvTranspose2d(4, 6, (2, 3), groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(72, 2))
        matrix = FIM(net.double(), torch.randn(5, 4, 2, 2, dtype=torch.float64), PMatEKFAC)
        assert isinstance(matrix, PMatEKFAC)
    else:
        matrix = case_matrix(model)
    dense, vectors = matrix.get_dense_tensor(split_weight_bias=split), matrix.get_KFE(split_weight_bias=split)
    for layer_id, place in matrix.layer_collection.slices().items():
        u, eye = vectors[layer_id], torch.eye(place.stop - place.start, dtype=torch.float64)
        assert relative_error(u.T @ u, eye) <= 1e-12
        block = u * matrix.data[layer_id].values.flatten() @ u.T
        assert relative_error(dense[place, place], block) <= 1e-12
    assert relative_error(matrix.get_diag(split_weight_bias=split), dense.diagonal()) <= 1e-12


def test_without_split_eigenvectors_are_the_plain_kronecker_product() -> None:
    matrix = case_matrix("conv-groups")
    found = matrix.data["0"].basis
    assert found.inputs is not None
    expected = torch.block_diag(*[torch.kron(g, a) for g, a in zip(found.outputs, found.inputs, strict=True)])
    assert relative_error(matrix.get_KFE(split_weight_bias=False)["0"], expected) <= 1e-14


def test_eigenvalues_refreshed_at_other_parameters_in_the_basis_that_is_kept() -> None:
    case = MODELS["mlp"]()
    matrix = FIM(case.model, case.inputs, PMatEKFAC)
    vectors = matrix.get_KFE()
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.mul_(1.5)
    x = case.inputs[:4] + 0.5
    exact = FIM(case.model, x, "blockdiag")
    before = {layer_id: block.values for layer_id, block in matrix.data.items()}
    new = {name: (u.T @ exact.data[name] @ u).diagonal().view_as(before[name]) for name, u in vectors.items()}
    averaged = matrix * 1.0
    averaged.update([(x[:1],), (x[1:],)], decay=0.75)
    assert averaged.n_examples == 11
    matrix.update_diag(x)
    assert matrix.n_examples == 4
    for layer_id, u in vectors.items():
        assert relative_error(matrix.get_KFE()[layer_id], u) == 0
        assert relative_error(matrix.data[layer_id].values, new[layer_id]) <= 1e-10
        expected = 0.75 * before[layer_id] + 0.25 * new[layer_id]
        assert relative_error(averaged.data[layer_id].values, expected) <= 1e-10


def test_an_update_needs_a_generator() -> None:
    for update in (
        lambda: basis(LAYERS).update_diag(torch.ones(1, 2)),
        lambda: basis(LAYERS).update(torch.ones(1), 0.5),
    ):
        with pytest.raises(ValueError, match="has no generator to compute"):
            update()


def test_other_bases_make_lazy_sums_and_no_products() -> None:
    first, second = basis(LAYERS), kfac_data(LAYERS, 1).convert("ekfac")
    total, difference = first + second, first - second
    assert isinstance(total, PMatSum) and isinstance(difference, PMatSum)
    assert relative_error(total.get_dense_tensor(), first.get_dense_tensor() + second.get_dense_tensor()) <= 1e-12
    assert relative_error(difference.get_dense_tensor(), first.get_dense_tensor() - second.get_dense_tensor()) <= 1e-12
    with pytest.raises(
        UnsupportedOperationError, match="blocks with different eigenvectors is not a PMatEKFAC; use mv"
    ):
        first.mm(second)


def test_an_embedding_keeps_unit_vectors_for_its_rows() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 3, padding_idx=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
    x = torch.randint(7, (6, 4), generator=torch.Generator().manual_seed(0))
    matrix, exact = FIM(model, x, [PMatEKFAC, "blockdiag"])
    assert matrix.data["0"].basis.inputs is None
    g = FIM(model, x, PMatKFAC).data["0"].outputs[0]
    u = torch.kron(torch.eye(7).double(), torch.linalg.eigh(g)[1].contiguous())
    expected = u * (u.T @ exact.data["0"] @ u).diagonal() @ u.T
    place = matrix.layer_collection.slices()["0"]
    assert relative_error(matrix.get_dense_tensor()[place, place], expected) <= 1e-10
    v = random_pvector(matrix.layer_collection, dtype=torch.float64)
    _check_solution(matrix.get_dense_tensor(), matrix.solve(v, 0.1), v, 0.1)
    assert (
        relative_error(
            matrix.eigendecomposition().vectors().norm(dim=1), torch.ones(len(v.get_flat_representation())).double()
        )
        <= 1e-12
    )


def test_a_large_table_needs_no_more_than_its_rows() -> None:
    rows = 300_000  # eigenvectors of that order would take 720 GB
    model = nn.Sequential(nn.Embedding(rows, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
    x = torch.randint(rows, (6, 4), generator=torch.Generator().manual_seed(0))
    matrix, diagonal = FIM(model, x, [PMatEKFAC, "diag"])
    assert relative_error(matrix.trace(), diagonal.trace()) <= 1e-12
    assert relative_error(matrix.get_diag().sum(), diagonal.trace()) <= 1e-12
    leading = matrix.eigendecomposition(1)
    assert relative_error(matrix.mv(leading.vector(0)).norm(), leading.values[0]) <= 1e-12


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_degenerate_data_are_damped(scale: float) -> None:
    """A dead layer, constant inputs, one example: zero and coinciding eigenvalues."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.dead, self.unused = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.dead(torch.relu(self.used(x) - 1e30))
            return outputs

    model = Net().double()
    x = torch.ones(1, 3, dtype=torch.float64) * scale
    for kind in ("kfac", "ekfac", "kfac-reduce", "ekfac-reduce", "quasidiag"):
        matrix = FIM(model, x, kind, variant="regression")
        dense, v = matrix.get_dense_tensor(), random_pvector(matrix.layer_collection, dtype=torch.float64)
        _check_solution(dense, matrix.solve(v, 0.1), v, 0.1)
        expected = torch.linalg.slogdet(dense + 0.1 * torch.eye(len(dense)).double())[1]
        assert relative_error(matrix.logdet(0.1), expected) <= 1e-10
        assert matrix.sample(0.1).norm() > 0
        assert relative_error(matrix.norm(2), torch.linalg.matrix_norm(dense, 2)) <= 1e-10


def test_singular_blocks_are_refused() -> None:
    matrix = case_matrix("mlp")  # a softmax does not see a shift
    v = random_pvector(matrix.layer_collection, dtype=torch.float64)
    for act in (lambda: matrix.solve(v, 0.0), lambda: matrix.inverse(0.0), lambda: matrix.logdet(0.0)):
        with pytest.raises(NotPositiveDefiniteError, match=r"the block of layer '.' \+ 0 I is singular"):
            act()
    shifted = matrix + PMatEye(layer_collection=matrix.layer_collection, scaling=1e-3)
    assert isinstance(shifted, PMatEKFAC)
    _check_solution(shifted.get_dense_tensor(), shifted.solve(v, 0.0), v, 0.0)


def test_bad_data_are_refused() -> None:
    block = basis(LAYERS).data["fc"]
    wrong = EigenBlock(block.basis, torch.ones(1, 3, 2).double())
    with pytest.raises(
        ShapeError, match=r"layer 'fc' with 9 parameters: got .*'values': \(1, 3, 2\).*; expected .*\(1, 3, 3\)"
    ):
        PMatEKFAC(data={"fc": wrong}, layer_collection=LAYERS)
    with pytest.raises(NonFiniteError, match="layer 'fc': the eigenvectors or eigenvalues"):
        PMatEKFAC(data={"fc": EigenBlock(block.basis, block.values * float("nan"))}, layer_collection=LAYERS)
    with pytest.raises(TypeError, match="layer 'fc': the data of a PMatEKFAC are EigenBlocks, got tuple"):
        PMatEKFAC(data={"fc": (1, 2)}, layer_collection=LAYERS)
    with pytest.raises(
        LayerCollectionMismatchError, match=r"the data of a PMatEKFAC is a mapping with the layers \['fc'\]"
    ):
        PMatEKFAC(data={}, layer_collection=LAYERS)


def test_a_one_shot_iterator_is_refused() -> None:
    case = MODELS["mlp"]()
    with pytest.raises(ValueError, match="2 passes over the data are needed"):
        FIM(case.model, iter([(case.inputs,)]), PMatEKFAC)


def test_a_layer_without_kronecker_structure_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    with pytest.raises(UnsupportedOperationError, match=r"layer '1': .*representation=\"auto\", or a mapping"):
        FIM(model, torch.randn(5, 3, dtype=torch.float64), PMatEKFAC)


def test_what_is_stored_is_what_was_said() -> None:
    case = MODELS["conv-groups"]()
    for kind in ("kfac", "ekfac", "kfac-reduce", "ekfac-reduce", "quasidiag"):
        matrix = FIM(case.model, case.inputs, kind)
        told = type(matrix).stored_numbers(LayerCollection.from_model(case.model))
        for layer_id, number in told.items():
            stored = [t.numel() for name, t in matrix.tensors().items() if name.rpartition(".")[0] == layer_id]
            assert sum(stored) == number
    layers = LayerCollection.from_model(nn.Sequential(nn.Embedding(9, 2), nn.LayerNorm(2), nn.Linear(2, 3)))
    assert PMatEKFAC.stored_numbers(layers) == {"0": 4 + 18, "1": None, "2": 27}
    assert "ekfac" in str(layers)


def test_products_are_differentiable_and_products_of_another_dtype_are_refused() -> None:
    matrix = basis(LayerCollection({"conv": Conv2dLayer(4, 2, (2, 1), groups=2)}))
    layers = matrix.layer_collection
    flat = random_pvector(layers, dtype=torch.float64).get_flat_representation().requires_grad_()
    matrix.vTMv(PVector(layers, vector_repr=flat)).backward()  # type: ignore[no-untyped-call]
    assert flat.grad is not None
    assert relative_error(flat.grad, 2 * matrix.get_dense_tensor() @ flat.detach()) <= 1e-12
    assert matrix.data["conv"].basis.layout == KroneckerLayout(2, 1, 4, has_bias=True)
