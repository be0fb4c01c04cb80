"""Storable: what a file says of a matrix, which class reads it, and what is refused."""

import copy
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nngeo_core import (
    FVector,
    KroneckerFactors,
    KroneckerLayout,
    LayerCollection,
    LinearLayer,
    PluginError,
    PMat,
    PVector,
    StorageError,
    UnsupportedOperationError,
    hookimpl,
)
from nngeo_core.matrices.files import describe_part, restore_parts
from nngeo_core.plugins import registry
from nngeo_core.storage import Stored, read_file, write_file

LAYERS = LayerCollection({"fc": LinearLayer(2, 1), "head": LinearLayer(1, 1, bias=False)})


class Algebra(PMat):
    """c I, without most of its algebra."""

    def _unfinished(self, *arguments: Any) -> Any:
        raise AssertionError("not needed here")

    _solve = _inverse = _mm = _add = _scaled = trace = frobenius_norm = get_diag = get_dense_tensor = _unfinished

    def _mv(self, v: Tensor) -> Tensor:
        return self.data * v


class PMatPlain(Algebra):
    """One tensor, and nothing said about files."""

    name = "files-plain"

    def _data_shape(self) -> tuple[()]:
        return ()


class PMatOther(PMatPlain):
    name = "files-other"


class PMatListed(Algebra):
    """Data that are no tensor, and a number beside them."""

    name = "files-listed"

    def _checked(self, data: Any) -> Any:
        return list(data)

    def tensors(self) -> dict[str, Tensor]:
        return {f"row.{place}": row for place, row in enumerate(self.data)}


class PMatRestored(PMatListed):
    name = "files-restored"

    def _data_description(self) -> dict[str, Any]:
        return {"rows": len(self.data)}

    @classmethod
    def _data_restored(
        cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any], layers: LayerCollection
    ) -> list[Tensor]:
        assert layers == LAYERS
        return [tensors[f"row.{place}"] for place in range(description["rows"])]


class PMatNamed(PMatListed):
    """Data by name, in an order of their own."""

    name = "files-named"

    def _checked(self, data: Any) -> Any:
        return dict(data)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.data)

    @staticmethod
    def _data_restored(tensors: Mapping[str, Tensor], description: Mapping[str, Any], layers: LayerCollection) -> Any:
        return dict(tensors)


class PMatNothing(Algebra):
    """Stores no numbers."""

    name = "files-nothing"

    def _checked(self, data: Any) -> Any:
        return data


@pytest.fixture
def registered() -> Any:
    class Plugin:
        @hookimpl
        def nngeo_representations(self) -> list[type[PMat]]:
            return [PMatOther]

    plugin = Plugin()
    registry.register(plugin, name="files")
    yield
    registry.unregister("files")


def plain(value: float = 0.1, **options: Any) -> PMatPlain:
    return PMatPlain(data=torch.tensor(value), layer_collection=LAYERS, **options)


def test_the_header_says_what_the_matrix_is(tmp_path: Path) -> None:
    plain(n_examples=7, symmetric=False, likelihood="regression").save(tmp_path / "file")
    header = read_file(tmp_path / "file", "pmat").header
    assert (header["name"], header["class"]) == ("files-plain", f"{__name__}.PMatPlain")
    about = header["about"]
    assert (about["n_examples"], about["symmetric"], about["likelihood"], about["data"]) == (7, False, "regression", {})
    assert [layer["id"] for layer in about["layers"]] == ["fc", "head"]
    found = PMatPlain.load(tmp_path / "file")
    assert (found.n_examples, found.symmetric, found.likelihood) == (7, False, "regression")
    assert found.layer_collection == LAYERS
    assert found.generator is None
    v = PVector(LAYERS, vector_repr=torch.arange(4.0))
    assert torch.equal(found.mv(v).get_flat_representation(), torch.tensor(0.1) * torch.arange(4.0))


def test_an_abstract_class_reads_what_is_registered(tmp_path: Path, registered: None) -> None:
    PMatOther(data=torch.ones(()), layer_collection=LAYERS).save(tmp_path / "file")
    assert type(PMat.load(tmp_path / "file")) is PMatOther


def test_an_abstract_class_reads_what_is_imported(tmp_path: Path) -> None:
    plain().save(tmp_path / "file")
    assert type(PMat.load(tmp_path / "file")) is PMatPlain


def test_an_unknown_representation_names_what_to_install(tmp_path: Path) -> None:
    tensors, header = plain()._contents()
    header |= {"name": "striped", "class": "striped_matrices.striped.PMatStriped"}
    write_file(tmp_path / "file", Stored("pmat", header, tensors))
    expected = (
        r"holds a pmat 'striped', written by the class striped_matrices\.striped\.PMatStriped: install the distribution"
    )
    with pytest.raises(PluginError, match=rf"{expected} that provides the package 'striped_matrices'"):
        PMat.load(tmp_path / "file")


def test_a_concrete_class_refuses_another_one(tmp_path: Path) -> None:
    plain().save(tmp_path / "file")
    with pytest.raises(
        StorageError, match=r"holds a pmat 'files-plain' \(.*PMatPlain\), and PMatRestored is 'files-restored'"
    ):
        PMatRestored.load(tmp_path / "file")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [None, torch.float64, torch.float32])
def test_it_loads_in_the_dtype_and_on_the_device_asked_for(
    tmp_path: Path, dtype: torch.dtype, wanted: torch.dtype | None
) -> None:
    data = torch.tensor(1 / 3, dtype=dtype)
    PMatPlain(data=data, layer_collection=LAYERS).save(tmp_path / "file")
    found = PMatPlain.load(tmp_path / "file", map_location="cpu", dtype=wanted)
    assert found.dtype == (wanted or dtype)
    assert torch.equal(found.data, data.to(wanted or dtype))


def test_data_of_one_s_own_need_one_method(tmp_path: Path) -> None:
    rows = [torch.ones(2), torch.zeros(3)]
    with pytest.raises(UnsupportedOperationError, match="a file is not a PMatListed; .*no _data_restored"):
        PMatListed(data=rows, layer_collection=LAYERS).save(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    PMatRestored(data=rows, layer_collection=LAYERS).save(tmp_path / "file")
    assert [row.tolist() for row in PMatRestored.load(tmp_path / "file").data] == [[1, 1], [0, 0, 0]]


def test_tensors_come_back_in_their_own_order(tmp_path: Path) -> None:
    rows = {
        "second": torch.ones(1),
        "first": torch.zeros(3),
        "10": torch.ones(2),
        "9": torch.ones(5, dtype=torch.float64),
    }
    PMatNamed(data=rows, layer_collection=LAYERS).save(tmp_path / "file")
    assert list(PMatNamed.load(tmp_path / "file").data) == list(rows)
    tensors, header = PMatNamed(data=rows, layer_collection=LAYERS)._contents()
    written_before = {key: value for key, value in header.items() if key != "tensors"}
    assert PMatNamed._from_contents(dict(sorted(tensors.items())), written_before).data.keys() == rows.keys()


def test_what_stores_no_numbers_says_so(tmp_path: Path) -> None:
    matrix = PMatNothing(data="examples", layer_collection=LAYERS)
    expected = (
        "a PMatNothing stores no numbers that could be {}: it computes its products from the model and the examples;"
    )
    with pytest.raises(UnsupportedOperationError, match=expected.format("written to a file")):
        matrix.save(tmp_path / "file")
    with pytest.raises(UnsupportedOperationError, match=expected.format("pickled")):
        pickle.dumps(matrix)
    assert copy.copy(matrix).data == "examples"
    assert list(tmp_path.iterdir()) == []


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda about: about.pop(key)


INCONSISTENT = {
    "no-layers": without("layers"),
    "no-symmetry": without("symmetric"),
    "layer-without-fields": lambda about: about["layers"][0].pop("fields"),
    "layer-of-another-size": lambda about: about["layers"][0]["fields"].update(in_features=3),
    "layer-twice": lambda about: about["layers"].append(about["layers"][0]),
    "layers-no-list": lambda about: about.update(layers=3),
    "unknown-field": lambda about: about["layers"][0]["fields"].update(colour="red"),
}


@pytest.mark.parametrize("change", INCONSISTENT.values(), ids=INCONSISTENT)
def test_what_does_not_fit_together_makes_no_object(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors, header = PMatSized(data=torch.ones(4), layer_collection=LAYERS)._contents()
    change(header["about"])
    write_file(tmp_path / "file", Stored("pmat", header, tensors))
    with pytest.raises(StorageError, match="is whole, and what it says does not fit together"):
        PMatSized.load(tmp_path / "file")


class PMatSized(Algebra):
    """A diagonal."""

    name = "files-sized"

    def _data_shape(self) -> tuple[int]:
        return (self.layer_collection.numel(),)


def test_non_finite_numbers_are_refused(tmp_path: Path) -> None:
    matrix = PMatSized(data=torch.ones(4), layer_collection=LAYERS)
    matrix.data[1] = torch.nan
    matrix.save(tmp_path / "file")
    with pytest.raises(StorageError, match="NaN or infinite entries"):
        PMatSized.load(tmp_path / "file")


def test_parts_are_described_and_restored() -> None:
    parts = [plain(0.5, n_examples=3), PMatSized(data=torch.arange(4.0), layer_collection=LAYERS)]
    tensors = {f"{place}.data": part.data for place, part in enumerate(parts)}
    found = restore_parts(PMat, tensors, [describe_part(part) for part in parts])  # type: ignore[type-abstract]
    assert [type(part) for part in found] == [PMatPlain, PMatSized]
    assert found[0].n_examples == 3
    assert [part.data.tolist() for part in found] == [0.5, [0, 1, 2, 3]]


def test_a_copy_shares_the_generator_and_drops_what_was_computed() -> None:
    matrix = plain()
    matrix.generator = SimpleNamespace(model=lambda: None)  # type: ignore[assignment]
    matrix._cached("solver", lambda: lambda v: v)
    for found in (copy.copy(matrix), copy.deepcopy(matrix)):
        assert found.generator is matrix.generator
        assert found._cached("solver", lambda: "new") == "new"
    assert copy.copy(matrix).data is matrix.data
    assert copy.deepcopy(matrix).data is not matrix.data
    pickled = pickle.loads(pickle.dumps(matrix))
    assert pickled.generator is None and torch.equal(pickled.data, matrix.data)
    assert matrix._cached("solver", lambda: "new") != "new"
    several = copy.deepcopy([matrix, matrix])
    assert several[0] is several[1]


VALUES = {
    "flat-vector": PVector(LAYERS, vector_repr=torch.arange(4.0)),
    "dict-vector": PVector(LAYERS, dict_repr={"fc": (torch.ones(1, 2), torch.zeros(1)), "head": (torch.ones(1, 1),)}),
    "model-vector": PVector.from_model(
        torch.nn.Sequential(torch.nn.Linear(2, 1)), LayerCollection({"0": LinearLayer(2, 1)})
    ),
    "function-vector": FVector(torch.arange(6.0).view(2, 3)),
    "layers": LayerCollection.from_model(torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)),
    "factors": KroneckerFactors(torch.eye(3)[None], torch.ones(1, 1, 1), KroneckerLayout(1, 1, 2, True)),
}


def numbers(value: Any) -> Any:
    if isinstance(value, PVector):
        return [value.get_flat_representation().tolist(), identical(value.layer_collection)]
    if isinstance(value, FVector):
        return value.vector_repr.tolist()
    return (
        identical(value)
        if isinstance(value, LayerCollection)
        else [value.inputs.tolist(), value.outputs.tolist(), value.layout]
    )


def identical(layers: LayerCollection) -> list[Any]:
    return [list(layers.items()), layers.parameter_names, layers.slices(), str(layers)]


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_vectors_and_records_are_copied_and_pickled(value: Any) -> None:
    for found in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert type(found) is type(value)
        assert found is not value
        assert numbers(found) == numbers(value)
