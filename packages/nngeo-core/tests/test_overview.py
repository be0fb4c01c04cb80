"""What `print(layer_collection)` shows, with every kind of representation that a registry may have."""

from collections.abc import Callable, Mapping

import pytest

from nngeo_core import Conv2dLayer, ConvTranspose2dLayer, LayerCollection, LinearLayer, ParameterLayer, PluginError
from nngeo_core.layers import overview
from nngeo_core.layers.layer import Layer
from nngeo_core.layers.overview import LEAST, WIDTH, Origin, layer_table

LAYERS = LayerCollection(
    {"conv": Conv2dLayer(3, 8, 3), "norm": ParameterLayer((("weight", (8,)), ("bias", (8,)))), "": LinearLayer(8, 2)}
)


class Representations:
    """A registry of representations, each of which is what it returns as its stored numbers."""

    def __init__(self, costs: Mapping[str, object]) -> None:
        self.costs = costs

    def names(self, table: str) -> tuple[str, ...]:
        return tuple(self.costs)

    def representation(self, name: str) -> object:
        cost = self.costs[name]
        if isinstance(cost, PluginError):
            raise cost
        return type(name, (), {"stored_numbers": staticmethod(cost)}) if callable(cost) else object()


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda **costs: monkeypatch.setattr(overview, "registry", Representations(costs))


def lines(layers: LayerCollection = LAYERS) -> list[str]:
    return str(layers).splitlines()


def cells(layers: LayerCollection = LAYERS) -> list[list[str]]:
    return [line.split() for line in lines(layers)]


def test_a_column_for_each_representation_and_a_total(register: Callable[..., None]) -> None:
    register(dense=lambda layers: layers.numel() ** 2, kfac=lambda layers: {"conv": 848, "norm": None, "": 85})
    assert lines() == [
        "layer  kind                          parameters  rule  dense  kfac",
        "conv   Conv2d 3 -> 8, 3x3, groups 1         224  -             848",
        "norm   8, bias 8                             16  -               -",
        "''     Linear 8 -> 2                         18  -              85",
        "total                                       258        66564   933",
        "right of the rule: how many numbers each representation stores; "
        "-: it cannot hold the layer, which the total leaves out",
    ]


def test_the_core_alone(register: Callable[..., None]) -> None:
    register()
    assert lines() == [
        "layer  kind                          parameters  rule",
        "conv   Conv2d 3 -> 8, 3x3, groups 1         224  -",
        "norm   8, bias 8                             16  -",
        "''     Linear 8 -> 2                         18  -",
        "total                                       258",
    ]


def test_an_unknown_layer_makes_the_total_unknown(register: Callable[..., None]) -> None:
    register(kfac=lambda layers: {"conv": 848, "norm": None})
    assert [row[-1] for row in cells()[1:-1]] == ["848", "-", "?", "?"]
    assert lines()[-1] == (
        "right of the rule: how many numbers each representation stores; "
        "-: it cannot hold the layer, which the total leaves out; ?: it does not say"
    )


def test_a_representation_that_holds_no_layer_has_no_total(register: Callable[..., None]) -> None:
    register(kfac=lambda layers: dict.fromkeys(layers))
    assert [row[-1] for row in cells()[1:-1]] == ["-"] * 4


def _fails(layers: LayerCollection) -> int:
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    "cost",
    [None, lambda layers: {}, lambda layers: None, lambda layers: "many", lambda layers: {"conv": 0.5}, _fails]
    + [PluginError("two plugins conflict over it")],
    ids=["no-method", "nothing-said", "none", "text", "no-integers", "raises", "conflict"],
)
def test_a_representation_that_does_not_say_is_marked_so(register: Callable[..., None], cost: object) -> None:
    register(odd=cost, diag=lambda layers: {layer_id: layer.numel() for layer_id, layer in layers.items()})
    header, *rows, total, legend = cells()
    assert header[-2:] == ["odd", "diag"]
    assert [row[-2:] for row in rows] == [["-", "224"], ["-", "16"], ["-", "18"]]  # the rule, then the cost
    assert total == ["total", "258", "?", "258"]
    assert " ".join(legend).endswith("; ?: it does not say")


def test_printing_while_plugins_are_being_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loading:
        def names(self, table: str) -> tuple[str, ...]:
            raise PluginError("a plugin looked something up while plugins are being loaded")

    monkeypatch.setattr(overview, "registry", Loading())
    assert cells()[0] == ["layer", "kind", "parameters", "rule"]


def test_an_empty_collection_costs_nothing(register: Callable[..., None]) -> None:
    register(dense=lambda layers: layers.numel() ** 2, diag=lambda layers: {}, odd=None)
    assert cells(LayerCollection())[1] == ["total", "0", "0", "0", "?"]


def test_large_numbers_are_rounded(register: Callable[..., None]) -> None:
    register(dense=lambda layers: 10**10, diag=lambda layers: 10**10 - 1)
    assert cells()[-2][-2:] == ["1.00e+10", "9999999999"]


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (LinearLayer(3, 2), "Linear 3 -> 2"),
        (LinearLayer(3, 2, bias=False), "Linear 3 -> 2, no bias"),
        (Conv2dLayer(4, 8, (3, 5), groups=2), "Conv2d 4 -> 8, 3x5, groups 2"),
        (ConvTranspose2dLayer(4, 8, 3, bias=False), "ConvTranspose2d 4 -> 8, 3x3, groups 1, no bias"),
        (ParameterLayer((("weight", (100, 16)),)), "100 x 16"),
        (ParameterLayer((("weight_ih", (6, 2)), ("bias_ih", (6,)))), "6 x 2, bias 6"),
        (ParameterLayer((("scale", ()), ("shift", (3,)))), "scale scalar, shift 3"),
        (ParameterLayer((("a", (1, 2)), ("b", (3,)), ("c", (4,)))), "a 1 x 2, 2 more"),
    ],
    ids=str,
)
def test_kinds_in_short(register: Callable[..., None], layer: Layer, text: str) -> None:
    register()
    row = lines(LayerCollection({"a": layer}))[1]
    assert row.split("  ")[1].strip() == text or row.startswith(f"a      {text} ")


def test_the_kind_names_the_type_of_the_module_where_it_is_known(register: Callable[..., None]) -> None:
    register()
    layers = {"a": ParameterLayer((("weight", (100, 16)),))}
    row = layer_table(layers, {"a": Origin("Embedding", "embedding", None)}).splitlines()[1]
    assert row == "a      Embedding 100 x 16        1600  embedding"


@pytest.mark.parametrize(
    ("columns", "width"), [(["dense"], WIDTH), (["dense", "a" * 20], WIDTH + 13)], ids=["all-fit", "too-many-columns"]
)
def test_a_wide_table_is_shortened_where_it_can_be(
    register: Callable[..., None], columns: list[str], width: int
) -> None:
    register(**dict.fromkeys(columns, lambda layers: 1))
    path = "encoder." * 8 + "attention"
    layers = {path: ParameterLayer((("weight", (100, 16)), ("b" * 30, (16,)))), "short": LinearLayer(1, 1)}
    origins = {path: Origin("SelfAttentionOfSomeLibrary", " + ".join(["linear"] * 9), None)}
    header, row, *_ = layer_table(layers, origins).splitlines()
    assert len(header) == width
    found, kind, number, rule = row.split("  ", 3)
    assert found == "..." + path[-max(LEAST["layer"], header.index("kind") - 2) + 3 :]
    assert (kind, number.strip(), rule.strip()) == ("SelfAttentionOfSomeLi...", "", "1616  linear + line...")


def test_only_what_must_be_is_shortened(register: Callable[..., None]) -> None:
    register()
    layers = {"a": ParameterLayer((("x" * 100, (16,)),))}
    row = layer_table(layers, {"a": Origin("Net", "generic", None)}).splitlines()[1]
    assert len(row) == WIDTH and row.startswith("a      Net xxx") and "x...  " in row and row.endswith("generic")
