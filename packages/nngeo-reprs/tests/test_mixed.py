"""PMatMixed: parts in different representations, whose layers alternate."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import (
    FIM,
    EmpiricalFIM,
    LayerCollection,
    LayerCollectionMismatchError,
    LinearLayer,
    NotPositiveDefiniteError,
    PMat,
    UnsupportedOperationError,
    random_pvector,
)
from nngeo_core.plugins import registry
from nngeo_core.sweep.generator import Generator
from nngeo_core.testing import Case, PMatAlgebraContract, PMatContract, fisher, relative_error
from nngeo_core.testing.models import mlp
from nngeo_reprs import PMatBlockDiag, PMatDense, PMatDiag, PMatEye, PMatKFAC, PMatMixed
from nngeo_reprs.diag import DiagAccumulator
from nngeo_reprs.mixed_choice import Share
from nngeo_reprs.mixed_sums import MixedAccumulator


class PMatAlternating(PMatMixed):
    """Dense over the layers at even places, diagonal at odd ones."""

    @classmethod
    def prepare(cls, generator: Generator, choices: Any = None) -> MixedAccumulator:
        names = tuple(generator.layer_collection)
        halves = [Share(names[::2], PMatDense), Share(names[1::2], PMatDiag)]
        return MixedAccumulator(generator, [share for share in halves if share.layers])


def _alternating(whole: Tensor, layers: LayerCollection) -> Tensor:
    """What is left of all entries."""
    owners = [torch.full((layer.numel(),), k % 2 == 0) for k, layer in enumerate(layers.values())]
    even = torch.cat(owners)
    return torch.where(even.unsqueeze(1) & even, whole, whole.diag().diag() * ~even)


class TestPMatMixed(PMatContract):
    representation = PMatAlternating

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        return _alternating(super().dense_value(case, layers, variant), layers)


class TestPMatMixedFromData(PMatAlgebraContract):
    def build(self, layers: LayerCollection, seed: int) -> PMat:
        generator, names = torch.Generator().manual_seed(seed), list(layers)
        parts: list[PMat] = [PMatEye(layer_collection=layers.restricted(names[:1]), scaling=2.0 + seed)]
        for name in names[1:]:
            rows = torch.randn(2, layers[name].numel(), dtype=torch.float64, generator=generator)
            parts.insert(0, PMatDense(data=rows.T @ rows, layer_collection=layers.restricted([name])))
        return PMatMixed(data=parts, layer_collection=layers)


class PMatRootless(PMatDiag):
    """A diagonal without one of the operations."""

    _sqrt = PMat._sqrt


class TwiceAccumulator(DiagAccumulator):
    """Forgets its first pass when the second begins."""

    passes = 2

    def begin_pass(self, number: int) -> None:
        super().begin_pass(number)
        if number:
            self.sums.clear()


class PMatTwice(PMatDiag):
    """A diagonal from the second of two passes."""

    accumulator = TwiceAccumulator


class Normalised(nn.Module):
    """Two linear layers around a normalisation, and a table whose rows are used behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(3, 4, bias=False)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(torch.tanh(self.table(x)))
        outputs: Tensor = self.head(hidden + 0.1 * self.table.weight.sum() * hidden)
        return outputs


@pytest.fixture
def case() -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Case(Normalised().double(), torch.randn(6, 3).double(), 3)


def _exact(case: Case) -> Tensor:
    layers = LayerCollection.from_model(case.model)
    return fisher(case.model, case.inputs, [name for name, _ in layers.named_parameters(case.model)], "classif_logits")


def _fim(case: Case, representation: Any, **options: Any) -> Any:
    return FIM(case.model, case.inputs, representation, **options)


def test_a_layer_that_only_the_generic_way_gets_right_has_no_factors(case: Case) -> None:
    """`LayerCollection.structure` promises factors for `table`; the first batch shows that there are none."""
    table = LayerCollection.from_model(case.model, only=["table"])
    assert table.structure("table").factor_shapes == ((1, 3, 3), (1, 4, 4))  # type: ignore[union-attr]
    with pytest.raises(
        UnsupportedOperationError, match="layer 'table': DenseJacobian is not a sum of Kronecker products"
    ):
        _fim(case, "kfac", layer_collection=table)
    auto, kfac = _fim(case, "auto"), _fim(case, {"head": "kfac", None: "blockdiag"})
    assert [(list(part.layer_collection), type(part)) for part in auto.data] == [
        (["head"], PMatKFAC),
        (["table", "norm"], PMatBlockDiag),
    ]
    assert torch.equal(auto.get_dense_tensor(), kfac.get_dense_tensor())
    assert relative_error(auto.get_dense_tensor()[:12, :12], _exact(case)[:12, :12]) <= 1e-10


def test_the_layers_of_one_key_keep_what_is_between_them(case: Case) -> None:
    mixed, exact = _fim(case, {"norm": "diag", None: PMatDense}), _exact(case)
    inner = torch.zeros(35, dtype=torch.bool)
    inner[12:20] = True
    expected = torch.where(inner ^ inner.unsqueeze(1), 0, torch.where(inner, exact.diag().diag(), exact))
    assert relative_error(mixed.get_dense_tensor(), expected) <= 1e-10
    assert mixed.n_examples == 6
    assert [part.n_examples for part in mixed.data] == [6, 6]


def test_leading_eigenvalues_outside_of_a_part_s_span_are_not_passed_over() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double(), torch.randn(3, 6).double()
    F = FIM(model, x, {"0": "lowrank", None: "diag"})
    for matrix in (F.inverse(0.1), -F):
        with pytest.raises(UnsupportedOperationError, match=r"is among the 1 leading ones and is not stored"):
            matrix.eigendecomposition(1)
        assert len(matrix.eigendecomposition().values) < matrix.size(0)
    found, exact = F.eigendecomposition(2), torch.linalg.eigvalsh(F.get_dense_tensor())
    assert torch.allclose(found.values, exact[-2:])


@pytest.mark.parametrize("representation", ["mixed", "auto", PMatMixed], ids=str)
def test_mixed_and_auto_are_the_automatic_choice(representation: Any) -> None:
    case = mlp()
    found, kfac = _fim(case, representation), _fim(case, "kfac")
    assert (type(found), [type(part) for part in found.data]) == (PMatMixed, [PMatKFAC])
    assert torch.equal(found.get_dense_tensor(), kfac.get_dense_tensor())


def test_in_a_list_it_comes_in_its_place_of_one_sweep(case: Case) -> None:
    diag, mixed, auto, block = _fim(case, ["diag", {"head": "dense", None: "diag"}, "auto", "blockdiag"])
    assert [type(matrix) for matrix in (diag, mixed, auto, block)] == [PMatDiag, PMatMixed, PMatMixed, PMatBlockDiag]
    assert torch.equal(mixed.get_diag()[:20], diag.get_diag()[:20])
    assert relative_error(mixed.get_diag(), block.get_diag()) <= 1e-12


@pytest.mark.parametrize("name", [name for name in registry.names("representations") if name != "mixed"])
def test_any_representation_is_a_part_or_says_why_not(name: str) -> None:
    case = mlp((4, 3, 3, 2))
    generator = registry.generator("hooks")(case.model, "classif_logits")
    alone = LayerCollection.from_model(case.model, only=["2"])
    kind, mapping = registry.representation(name), {"2": name, None: "diag"}
    if kind.prepare(generator) is None:
        with pytest.raises(
            UnsupportedOperationError, match=f"in the {kind.__name__} of '2': .* stores no sums .*; compute"
        ):
            _fim(case, mapping)
        return
    matrix, expected = _fim(case, mapping), _fim(case, name, layer_collection=alone)
    place = matrix.layer_collection.slices()["2"]
    v = random_pvector(matrix.layer_collection, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    part = v.restrict(alone)
    assert (
        relative_error((matrix @ v).get_flat_representation()[place], (expected @ part).get_flat_representation())
        <= 1e-10
    )
    solution = matrix.solve(v, 0.1)
    assert (matrix @ solution + 0.1 * solution - v).norm() <= 1e-10 * v.norm()
    single = matrix.to(torch.float32)
    assert (single.dtype, single.data[0].dtype) == (torch.float32, torch.float32)


def test_what_a_part_does_not_have_names_its_layers(case: Case) -> None:
    matrix = _fim(case, {"head": PMatRootless, None: "diag"})
    with pytest.raises(UnsupportedOperationError, match="in the PMatRootless of 'head': a square root .*; convert"):
        matrix.sqrt()
    singular = PMatMixed(
        data=[PMatDiag(data=torch.zeros(2), layer_collection=LayerCollection({"a": LinearLayer(2, 1, bias=False)}))],
        layer_collection=LayerCollection({"a": LinearLayer(2, 1, bias=False)}),
    )
    with pytest.raises(NotPositiveDefiniteError, match="in the PMatDiag of 'a': the diagonal"):
        singular.inverse(0)


def test_matrices_of_other_parts_are_not_combined(case: Case) -> None:
    one, other = _fim(case, [{"head": "dense", None: "diag"}, {"norm": "dense", None: "diag"}])
    with pytest.raises(UnsupportedOperationError, match=r"parts about \[\['norm'\], .* same mapping"):
        one + other
    same = _fim(case, {"head": "dense", None: "diag"})
    with pytest.raises(UnsupportedOperationError, match="in the PMatDense of 'head': .*PMatDiag"):
        same.mm(_fim(case, {"head": "diag", None: "diag"}))


def test_a_part_shares_no_more_than_its_layers() -> None:
    case = mlp((4, 3, 3, 2))
    matrix = _fim(case, {"0": "dense", None: "diag"})
    assert [part.generator.layer_collection == part.layer_collection for part in matrix.data] == [True, True]
    assert sorted(matrix.tensors()) == ["0.data", "1.data"]
    assert matrix.nbytes == 8 * (15 * 15 + 20)
    assert repr(matrix).splitlines()[1:] == [f"  '0': {matrix.data[0]}", f"  '2', '4': {matrix.data[1]}"]


def test_exponential_averages_are_those_of_the_parts(case: Case) -> None:
    mapping = {"head": "dense", None: "diag"}
    matrix, new = _fim(case, mapping), FIM(case.model, case.inputs[:2], mapping)
    expected = 0.75 * matrix.get_dense_tensor() + 0.25 * new.get_dense_tensor()
    matrix.update(case.inputs[:2], 0.75)
    assert relative_error(matrix.get_dense_tensor(), expected) <= 1e-12
    assert [matrix.n_examples, *(part.n_examples for part in matrix.data)] == [8, 8, 8]
    with pytest.raises(ValueError, match="2 parts go over the data one after the other and list_iterator"):
        matrix.update(iter([case.inputs]), 0.5)
    alone = PMatMixed(data=[PMatDiag(data=part.get_diag(), layer_collection=part.layer_collection) for part in matrix.data],
                      generator=matrix.generator)  # fmt: skip
    with pytest.raises(ValueError, match="a PMatDiag made from data has no generator"):
        alone.update(case.inputs, 0.5)


def test_centred_where_all_parts_can_be(case: Case) -> None:
    batch = (case.inputs, torch.tensor([0, 1, 2, 0, 1, 2]))
    options = {"variant": "classif_logits", "centred": True}
    mixed, dense = EmpiricalFIM(case.model, batch, [{"head": "dense", None: "diag"}, "dense"], **options)
    place = dense.layer_collection.slices()["head"]
    assert relative_error(mixed.get_diag(), dense.get_diag()) <= 1e-10
    assert relative_error(mixed.data[0].get_dense_tensor(), dense.get_dense_tensor()[place, place]) <= 1e-10
    with pytest.raises(UnsupportedOperationError, match="cannot subtract the mean gradient"):
        EmpiricalFIM(case.model, batch, "auto", **options)


def _half(case: Case, rows: slice, **prepared: Any) -> MixedAccumulator:
    generator = registry.generator("hooks")(case.model, "classif_logits")
    sums = PMatMixed.prepare(generator, prepared.get("choices"))
    sums.update(generator.jacobian(case.inputs[rows]))
    return sums


def test_automatic_sums_merge_and_are_kept(case: Case) -> None:
    whole, generator = _fim(case, "auto"), registry.generator("hooks")(case.model, "classif_logits")
    for first in (_half(case, slice(0, 2)), PMatMixed.prepare(generator)):
        rest = _half(case, slice(2 if first.n_examples else 0, 6))
        first.merge(rest)
        first.merge(PMatMixed.prepare(generator))
        loaded = PMatMixed.prepare(generator)
        loaded.load_state_dict(first.state_dict())
        for sums in (first, loaded):
            assert sums.n_examples == 6
            found = PMatMixed(generator, data=sums.finalize())
            assert relative_error(found.get_dense_tensor(), whole.get_dense_tensor()) <= 1e-12


def test_sums_of_other_parts_do_not_merge(case: Case) -> None:
    first, second = _half(case, slice(0, 2)), _half(case, slice(2, 6), choices={None: "diag"})
    with pytest.raises(TypeError, match=r"same parts; got PMatKFAC of \['head'\].* by the same mapping"):
        first.merge(second)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], TypeError, r"a sequence of matrices about some layers each, got \[\]"),
        (3, TypeError, "got 3"),
        ([3], TypeError, "got one with int"),
        (["a"], LayerCollectionMismatchError, r"\['b'\] not at all"),
        (["a", "single"], TypeError, r"torch.float64 on cpu, torch.float32 on cpu; part.to\(dtype, device\)"),
    ],
)  # fmt: skip
def test_other_data_is_refused(data: Any, error: type[Exception], message: str) -> None:
    layers = LayerCollection({name: LinearLayer(1, 1, bias=False) for name in "ab"})
    one = torch.ones(1, dtype=torch.float64)
    made: dict[Any, PMat] = {
        "a": PMatDiag(data=one, layer_collection=layers.restricted("a")),
        "single": PMatDiag(data=one.float(), layer_collection=layers.restricted("b")),
    }
    given = [made.get(part, part) for part in data] if isinstance(data, list) else data
    with pytest.raises(error, match=message):
        PMatMixed(data=given, layer_collection=layers)


def test_data_and_a_mapping_are_too_much() -> None:
    with pytest.raises(ValueError, match="got a `representation` too"):
        PMatMixed(data=[], representation={None: "diag"})


def test_a_part_that_takes_two_passes_is_resumed_in_each() -> None:
    """Halves of the data, merged, saved and loaded between the passes; the diagonal is complete after the first."""
    case, mapping = mlp((4, 3, 3, 2)), {"2": PMatTwice, None: "diag"}
    generator = registry.generator("hooks")(case.model, "classif_logits")
    state: dict[str, Tensor] = {}
    for number in range(PMatMixed.prepare(generator, mapping).passes):
        halves = [PMatMixed.prepare(generator, mapping) for _ in range(2)]
        for sums, rows in zip(halves, (slice(0, 3), slice(3, 7)), strict=True):
            if state:
                sums.load_state_dict(state)
            sums.begin_pass(number)
            sums.update(generator.jacobian(case.inputs[rows]))
        halves[0].merge(halves[1])
        state = halves[0].state_dict()
    expected = _fim(case, mapping)
    found = PMatMixed(generator, data=halves[0].finalize())
    assert number == 1
    assert relative_error(found.get_dense_tensor(), expected.get_dense_tensor()) <= 1e-12


def test_what_kfac_suggests_for_a_normalisation_works() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UnsupportedOperationError) as caught:
        FIM(model, x, "kfac")
    assert 'representation="auto", or a mapping such as {nn.Linear: "kfac", None: "blockdiag"}' in str(caught.value)
    auto, mapped = FIM(model, x, ["auto", {nn.Linear: "kfac", None: "blockdiag"}])
    assert torch.equal(auto.get_dense_tensor(), mapped.get_dense_tensor())
