"""Layer collections as JSON: rebuilt equal without the model, or refused by name."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from nngeo_core import (
    Conv2dLayer,
    ConvTranspose2dLayer,
    Layer,
    LayerCollection,
    LinearLayer,
    ParameterLayer,
    StorageError,
    UnsupportedOperationError,
)
from nngeo_core.layers.description import describe_layers, identify_layers, rebuild_layers


@dataclass(frozen=True)
class BandLayer(Layer):
    """A record of a third party: nested tuples, a default, a number that is no integer."""

    widths: tuple[tuple[int, ...], ...]
    scale: float = 0.1
    label: str | None = None

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {f"band{place}": shape for place, shape in enumerate(self.widths)}


class PlainLayer(Layer):
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (2,)}


@dataclass(frozen=True)
class TensorLayer(Layer):
    values: Any = field(default_factory=lambda: (torch.ones(1),))

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (2,)}


def layers() -> LayerCollection:
    found = LayerCollection({"": LinearLayer(2, 3), "été": Conv2dLayer(4, 2, (2, 1), groups=2)})
    found.add_layer("up", ConvTranspose2dLayer(4, 6, 3, bias=False), ["tied.weight"])
    found.add_layer("norm", ParameterLayer((("scale", (3,)), ("shift", ()))))
    found.add_layer("band", BandLayer(((1, 2), (3,)), label="b"))
    return found


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_a_collection_is_rebuilt_equal() -> None:
    found = rebuild_layers(through_json(describe_layers(layers())))
    assert found == layers()
    assert found.parameter_names == layers().parameter_names
    assert found.slices() == layers().slices()


def test_a_model_s_collection_is_rebuilt_equal() -> None:
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    found = LayerCollection.from_model(model)
    assert rebuild_layers(through_json(describe_layers(found))) == found
    assert [name for name, _ in found.named_parameters(model)] == [
        n for names in found.parameter_names.values() for n in names
    ]


@pytest.mark.parametrize("layer", [PlainLayer(), TensorLayer()], ids=lambda layer: type(layer).__name__)
def test_a_record_that_cannot_be_rebuilt_is_named(layer: Layer) -> None:
    with pytest.raises(
        UnsupportedOperationError, match=rf"layer 'own' cannot be written.*Make \S*{type(layer).__name__} a frozen"
    ):
        describe_layers(LayerCollection({"own": layer}))


def test_a_record_that_nobody_imported_is_named() -> None:
    description = describe_layers(layers())
    description[4]["record"] = "elsewhere.layers.BandLayer"
    with pytest.raises(
        StorageError, match=r"layer 'band' is described by a elsewhere\.layers\.BandLayer.*import the module"
    ):
        rebuild_layers(description)


def test_equal_collections_are_identified_alike() -> None:
    other = LayerCollection({**layers(), "band": BandLayer(((1, 2), (4,)), label="b")})
    assert identify_layers(layers()) == identify_layers(rebuild_layers(describe_layers(layers())))
    assert identify_layers(layers())[2] == ["up", repr(layers()["up"]), "tied.weight"]
    assert identify_layers(other) != identify_layers(layers())
