"""LayerCollection: which parameters make a layer, for ordinary, tied, parametrized and unsupported modules."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization

from nngeo_core.errors import LayerCollectionMismatchError, UnsupportedLayerError
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.layout import matrix_layout
from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers import overview, sources
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.layer import Conv2dLayer, Layer, LinearLayer, ParameterLayer
from nngeo_core.layers.rule import Call, LayerRule
from nngeo_core.layers.sources import find_rule, find_sources


class DescribingRule(LayerRule):
    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor, names: tuple[str, ...]
    ) -> LayerJacobian:
        raise AssertionError("a collection describes layers, it differentiates none")


class LinearRule(DescribingRule):
    name = "linear"
    module_types = (nn.Linear,)

    def describe(self, module: nn.Module) -> Layer:
        assert isinstance(module, nn.Linear)
        return LinearLayer(module.in_features, module.out_features, module.bias is not None)

    def structure(self, module: nn.Module, names: tuple[str, ...]) -> Structure:
        return Structure(matrix_layout({name: tuple(module.get_parameter(name).shape) for name in names}))


class Conv2dRule(DescribingRule):
    name = "conv2d"
    module_types = (nn.Conv2d,)

    def describe(self, module: nn.Module) -> Layer:
        assert isinstance(module, nn.Conv2d)
        kernel = (module.kernel_size[0], module.kernel_size[1])
        return Conv2dLayer(module.in_channels, module.out_channels, kernel, module.bias is not None, module.groups)

    def check(self, module: nn.Module) -> None:
        if module.training:
            raise UnsupportedLayerError("not in train mode; call model.eval()")


class EmbeddingRule(DescribingRule):
    name = "embedding"
    module_types = (nn.Embedding,)

    def describe(self, module: nn.Module) -> Layer:
        return ParameterLayer((("weight", tuple(module.get_parameter("weight").shape)),))

    def structure(self, module: nn.Module, names: tuple[str, ...]) -> Structure:
        shapes = {"weight": tuple(module.get_parameter("weight").shape)}
        return Structure(matrix_layout(shapes, transposed=True), diagonal_inputs=True)


class AttentionRule(DescribingRule):
    name = "attention"
    module_types = (nn.MultiheadAttention,)
    claims_subtree = True

    def describe(self, module: nn.Module) -> Layer:
        return ParameterLayer(tuple((name, tuple(p.shape)) for name, p in module.named_parameters()))


class RuleTable:
    """The look-ups that the layers ask of the plugin registry; there are no representations."""

    def __init__(self) -> None:
        rules = (LinearRule(), Conv2dRule(), EmbeddingRule(), AttentionRule())
        self.rules = {kind: rule for rule in rules for kind in rule.module_types}
        self.last_resort: LayerRule | None = None

    def rule(self, kind: type) -> LayerRule | None:
        return self.rules.get(kind)

    def resolve_rule(self, module: nn.Module) -> LayerRule | None:
        return self.last_resort

    def names(self, table: str) -> tuple[str, ...]:
        assert table == "representations"
        return ()


@pytest.fixture(autouse=True)
def rules(monkeypatch: pytest.MonkeyPatch) -> RuleTable:
    table = RuleTable()
    monkeypatch.setattr(sources, "registry", table)
    monkeypatch.setattr(overview, "registry", table)
    return table


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class OwnForward(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class SameForward(nn.Linear):
    """A subclass that only builds itself otherwise."""


def convnet() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3, bias=False)).eval()


def tied_head() -> nn.Module:
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 3), "body": nn.Linear(3, 3), "head": nn.Linear(3, 7)})
    model["head"].weight = model["embedding"].weight
    return model


def names(collection: LayerCollection) -> list[str]:
    return [name for held in collection.parameter_names.values() for name in held]


def test_from_model_describes_every_parameter_once_in_flat_order() -> None:
    model = convnet()
    collection = LayerCollection.from_model(model)
    assert dict(collection) == {"0": Conv2dLayer(2, 4, 3, groups=2), "3": LinearLayer(16, 3, bias=False)}
    assert collection.named_parameters(model) == tuple(model.named_parameters())
    assert collection.numel() == sum(parameter.numel() for parameter in model.parameters())
    assert collection.slices() == {"0": slice(0, 40), "3": slice(40, 88)}
    assert len(collection) == 2 and "3" in collection and list(collection) == ["0", "3"]


def test_a_model_that_is_a_layer_has_the_empty_id() -> None:
    model = nn.Linear(3, 2)
    collection = LayerCollection.from_model(model)
    assert dict(collection) == {"": LinearLayer(3, 2)}
    assert names(collection) == ["weight", "bias"]
    assert collection.get_layerid_module_maps(model) == ({"": model}, {model: ""})


def test_tied_weight_is_one_layer_and_the_rest_of_the_module_another() -> None:
    model = tied_head()
    collection = LayerCollection.from_model(model)
    assert dict(collection) == {
        "embedding": ParameterLayer((("weight", (7, 3)),)),
        "body": LinearLayer(3, 3),
        "head": ParameterLayer((("bias", (7,)),)),
    }
    assert sorted(collection.named_parameters(model)) == sorted(model.named_parameters())
    assert collection.numel() == 21 + 12 + 7
    layerid_to_module, module_to_layerid = collection.get_layerid_module_maps(model)
    assert layerid_to_module == {path: model[path] for path in ("embedding", "body", "head")}
    assert module_to_layerid == {module: path for path, module in layerid_to_module.items()}
    assert "embedding + linear" in str(collection)


def test_module_split_by_a_tie_names_its_layers_after_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    collection = LayerCollection.from_model(model)
    assert {layer_id: tuple(layer.parameter_shapes()) for layer_id, layer in collection.items()} == {
        "0.weight": ("weight",),
        "0.bias": ("bias",),
        "1": ("bias",),
        "2": ("weight", "bias"),
    }
    assert names(collection) == ["0.weight", "0.bias", "1.bias", "2.weight", "2.bias"]
    maps = collection.get_layerid_module_maps(model)
    assert maps[1] == {model[0]: "0.weight", model[1]: "1", model[2]: "2"}
    assert [id(p) for p in collection.parameters(maps[0])] == [id(p) for _, p in collection.named_parameters(model)]


def test_modules_that_share_everything_are_one_whole_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight, model[1].bias = model[0].weight, model[0].bias
    collection = LayerCollection.from_model(model)
    assert dict(collection) == {"0": LinearLayer(3, 3)}
    assert collection.get_layerid_module_maps(model) == ({"0": model[0]}, {model[0]: "0", model[1]: "0"})


def test_shared_module_is_one_source() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))
    assert [source.path for source in find_sources(model)] == ["0"]
    assert LayerCollection.from_model(model).numel() == 12


def test_sources_of_some_parameters_leave_the_other_modules_unchecked() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(3, 3), nn.GRUCell(3, 2), nn.Linear(3, 3))
    model[3].weight = model[1].weight
    assert [source.path for source in find_sources(model, {"1.weight"})] == ["1", "3"]
    assert find_sources(model, {"3.bias"})[0].names == {"weight": "1.weight", "bias": "3.bias"}
    assert [source.rule for source in find_sources(model, ["2.weight_ih"])] == [None]
    with pytest.raises(UnsupportedLayerError, match=r"module '0' \(Conv2d\)"):
        find_sources(model, {"0.bias", "1.weight"})


def test_frozen_parameters_are_included() -> None:
    model = convnet().requires_grad_(False)
    assert LayerCollection.from_model(model).numel() == 88


def test_claimed_children_belong_to_the_claiming_module() -> None:
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    found = find_sources(model)
    assert [source.path for source in found] == ["0", "1"]
    assert found[0].names["out_proj.weight"] == "0.out_proj.weight"
    collection = LayerCollection.from_model(model)
    assert collection.named_parameters(model) == tuple(model.named_parameters())
    layerid_to_module, module_to_layerid = collection.get_layerid_module_maps(model)
    assert layerid_to_module["0"] is model[0] and module_to_layerid[model[0].out_proj] == "0"
    assert [id(p) for p in collection.parameters(layerid_to_module)] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("module", [SameForward(3, 2), nn.Linear(3, 2)], ids=["subclass", "exact"])
def test_rule_reaches_subclasses_that_keep_forward(module: nn.Module) -> None:
    rule = find_rule(module)
    assert rule is not None and rule.name == "linear"


def instance_forward() -> nn.Module:
    module = nn.Linear(3, 2)
    module.forward = lambda x: 2 * nn.Linear.forward(module, x)  # type: ignore[method-assign]
    return module


def parametrized() -> nn.Module:
    module = nn.Linear(3, 2)
    register_parametrization(module, "weight", Doubled())
    return module


def old_style_weight_norm() -> nn.Module:
    module = nn.Linear(3, 2)
    weight = module.weight
    del module._parameters["weight"]
    module.register_parameter("weight_g", nn.Parameter(weight.norm(dim=1, keepdim=True)))
    module.register_parameter("weight_v", nn.Parameter(weight.detach().clone()))
    module.register_forward_pre_hook(lambda m, _: setattr(m, "weight", m.weight_v))
    return module


DECLINED = [OwnForward(3, 2), instance_forward(), parametrized(), old_style_weight_norm(), nn.Bilinear(2, 2, 2)]
DECLINED_IDS = ["own-forward", "instance-forward", "parametrized", "weight-norm", "no-rule"]


@pytest.mark.parametrize("module", DECLINED, ids=DECLINED_IDS)
def test_declined_modules_are_unsupported(module: nn.Module) -> None:
    assert find_rule(module) is None
    with pytest.raises(UnsupportedLayerError, match=type(module).__name__):
        LayerCollection.from_model(nn.Sequential(nn.Linear(3, 3), module))


@pytest.mark.parametrize("module", DECLINED, ids=DECLINED_IDS)
def test_plugins_resolve_what_no_table_can_name(module: nn.Module, rules: RuleTable) -> None:
    class EveryParameter(DescribingRule):
        name = "every"
        module_types = ()
        claims_subtree = True

        def describe(self, module: nn.Module) -> Layer:
            return ParameterLayer(tuple((name, tuple(p.shape)) for name, p in module.named_parameters()))

    rules.last_resort = EveryParameter()
    assert find_rule(module) is rules.last_resort
    model = nn.Sequential(module)
    assert LayerCollection.from_model(model).named_parameters(model) == tuple(model.named_parameters())


def test_weight_norm_of_torch_is_declined() -> None:
    assert find_rule(parametrizations.weight_norm(nn.Linear(3, 2))) is None


def test_refusal_of_a_rule_names_the_module() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"module '0' \(Conv2d\): not in train mode; call model.eval\(\)"):
        LayerCollection.from_model(convnet().train())


def test_lazy_modules_ask_for_a_first_batch() -> None:
    with pytest.raises(ValueError, match="without a shape yet: 0.weight, 0.bias; call the model on one batch"):
        LayerCollection.from_model(nn.Sequential(nn.LazyLinear(3)))


def test_unsupported_modules_are_named_with_the_ways_out() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GRUCell(3, 2, bias=False))
    with pytest.raises(UnsupportedLayerError) as caught:
        LayerCollection.from_model(model)
    for part in ("'1' (GRUCell) with 1.weight_ih, 1.weight_hh", "ignore_unsupported_layers=True", "nngeo_layer_rules"):
        assert part in str(caught.value)
    collection = LayerCollection.from_model(model, ignore_unsupported_layers=True)
    assert dict(collection) == {"0": LinearLayer(3, 3)}
    assert collection.ignored == (("1", "GRUCell", ("1.weight_ih", "1.weight_hh")),)
    assert "ignored: '1' (GRUCell) with 1.weight_ih, 1.weight_hh" in str(collection)


def test_parameter_tied_to_an_unsupported_module_is_unsupported() -> None:
    model = nn.Sequential(nn.Linear(3, 3), OwnForward(3, 3))
    model[1].weight = model[0].weight
    collection = LayerCollection.from_model(model, ignore_unsupported_layers=True)
    assert dict(collection) == {"0": ParameterLayer((("bias", (3,)),))}
    assert collection.ignored == (("1", "OwnForward", ("0.weight", "1.bias")),)


def test_print_is_a_table() -> None:
    collection = LayerCollection.from_model(convnet())
    collection.add_layer("extra", ParameterLayer((("shift", (5,)),)))
    assert str(collection).splitlines() == [
        "layer  kind                          parameters  rule",
        "0      Conv2d 2 -> 4, 3x3, groups 2          40  conv2d",
        "3      Linear 16 -> 3, no bias               48  linear",
        "extra  shift 5                                5  -",
        "total                                        93",
    ]
    assert str(LayerCollection(collection)) == str(collection)
    assert repr(collection) == "LayerCollection(3 layers, 93 parameters)"


def test_structures_are_what_the_rules_say() -> None:
    model = tied_head()
    collection = LayerCollection.from_model(model)
    factors = {
        layer_id: found and found.factor_shapes for layer_id in collection if (found := collection.structure(layer_id))
    }
    assert factors == {
        "embedding": None,  # tied to a linear layer, so no Kronecker product
        "body": ((1, 4, 4), (1, 3, 3)),
        "head": ((1, 1, 1), (1, 7, 7)),  # the bias alone
    }
    collection = LayerCollection.from_model(model, only=["body*"])
    assert LayerCollection(collection).structure("body") == collection.structure("body")
    embedding = LayerCollection.from_model(nn.Sequential(nn.Embedding(7, 3))).structure("0")
    assert embedding is not None and (embedding.factor_shapes, embedding.factor_numel) == (((1, 7), (1, 3, 3)), 16)


def test_two_linear_layers_that_share_their_weight_have_its_structure() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert LayerCollection.from_model(model).structure("0") == Structure(matrix_layout({"weight": (3, 3)}))


def test_a_rule_that_does_not_say_leaves_the_structure_unknown(rules: RuleTable) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)).eval()
    model[1].weight = model[0].weight
    collection = LayerCollection.from_model(model)
    assert [collection.structure(layer_id) for layer_id in collection] == [None] * 3


def test_without_a_model_the_record_says_the_structure() -> None:
    layers = LayerCollection({"a": Conv2dLayer(4, 6, (3, 2), groups=2), "b": ParameterLayer((("weight", (3, 2)),))})
    found = layers.structure("a")
    assert found is not None and found.factor_shapes == ((2, 13, 13), (2, 3, 3))
    assert layers.structure("b") is None


def test_add_layer_refuses_what_is_there_already() -> None:
    collection = LayerCollection({"fc": LinearLayer(3, 2)})
    with pytest.raises(ValueError, match=r"layer id 'fc' is in the collection already, as LinearLayer"):
        collection.add_layer("fc", LinearLayer(3, 2))
    with pytest.raises(ValueError, match=r"collection has already: \['fc.bias'\]"):
        collection.add_layer("other", ParameterLayer((("b", (2,)),)), ["fc.bias"])
    with pytest.raises(ValueError, match=r"'twice' holds parameters .*: \['x'\]"):
        collection.add_layer("twice", LinearLayer(3, 2), ["x", "x"])
    with pytest.raises(ValueError, match="got 1 names for them"):
        collection.add_layer("short", LinearLayer(3, 2), ["short.weight"])
    with pytest.raises(ValueError, match="got 0 names"):
        collection.add_layer("empty", ParameterLayer(()))
    assert collection == LayerCollection({"fc": LinearLayer(3, 2)})


def test_add_layer_from_model_builds_a_part() -> None:
    model = convnet()
    collection = LayerCollection()
    collection.add_layer_from_model(model, model[3])
    assert dict(collection) == {"3": LinearLayer(16, 3, bias=False)}
    whole = LayerCollection.from_model(model)
    whole.check_contains(collection)
    with pytest.raises(
        LayerCollectionMismatchError, match="layer '0' .* is not in a collection that has only the layers"
    ):
        collection.check_contains(whole)


def test_add_layer_from_model_ignores_trouble_elsewhere() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GRUCell(3, 2), nn.Linear(3, 2))
    collection = LayerCollection()
    collection.add_layer_from_model(model, model[2])
    assert names(collection) == ["2.weight", "2.bias"]


def test_add_layer_from_model_takes_tied_parameters_under_their_first_name() -> None:
    model = tied_head()
    collection = LayerCollection()
    collection.add_layer_from_model(model, model["head"])
    assert dict(collection) == {"head": LinearLayer(3, 7)}
    assert names(collection) == ["embedding.weight", "head.bias"]
    maps = collection.get_layerid_module_maps(model)
    assert maps == ({"head": model["head"]}, {model["head"]: "head", model["embedding"]: "head"})
    assert [id(p) for p in collection.parameters(maps[0])] == [id(p) for p in model["head"].parameters()]
    with pytest.raises(ValueError, match=r"has already: \['embedding.weight'\]"):
        collection.add_layer_from_model(model, model["embedding"])


def test_add_layer_from_model_refuses_other_modules() -> None:
    model, collection = convnet(), LayerCollection()
    with pytest.raises(ValueError, match="this Linear is not a module of the model"):
        collection.add_layer_from_model(model, nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"module '1' \(ReLU\) has no parameters of its own"):
        collection.add_layer_from_model(model, model[1])
    rnn = nn.Sequential(nn.GRUCell(3, 2))
    with pytest.raises(UnsupportedLayerError, match=r"'0' \(GRUCell\)"):
        collection.add_layer_from_model(rnn, rnn[0])
    assert len(collection) == 0


def test_hand_made_names_reach_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    collection = LayerCollection()
    collection.add_layer("shift", ParameterLayer((("b", (2,)),)), ["1.bias"])
    assert collection.named_parameters(model) == (("1.bias", model[1].bias),)
    layerid_to_module, module_to_layerid = collection.get_layerid_module_maps(model)
    assert layerid_to_module == {"shift": model[1]} and module_to_layerid == {model[1]: "shift"}
    assert next(collection.parameters(layerid_to_module)) is model[1].bias


def test_another_model_is_refused_with_the_parameter_named() -> None:
    collection = LayerCollection({"0": LinearLayer(3, 2)})
    with pytest.raises(LayerCollectionMismatchError, match="no parameter '0.weight' of layer '0'"):
        collection.named_parameters(nn.Linear(3, 2))
    with pytest.raises(LayerCollectionMismatchError, match=r"'0.weight' has shape \(2, 4\) in the model and \(2, 3\)"):
        collection.named_parameters(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(LayerCollectionMismatchError, match="no module for layer '0'"):
        list(collection.parameters({}))
    with pytest.raises(LayerCollectionMismatchError, match="needs a module with a parameter 'weight', got ReLU"):
        list(collection.parameters({"0": nn.ReLU()}))


DIFFERENCES: list[Any] = [
    pytest.param({"b": LinearLayer(3, 2)}, "'b'", id="id"),
    pytest.param({"a": LinearLayer(3, 2, bias=False)}, "bias=False", id="record"),
    pytest.param({"a": LinearLayer(3, 2), "b": LinearLayer(3, 2)}, "nothing in one", id="more"),
]


@pytest.mark.parametrize(("layers", "message"), DIFFERENCES)
def test_differing_collections_are_told_apart(layers: dict[str, Layer], message: str) -> None:
    one, other = LayerCollection({"a": LinearLayer(3, 2)}), LayerCollection(layers)
    assert one != other
    with pytest.raises(LayerCollectionMismatchError, match=message):
        one.check_same(other)


def test_order_and_parameter_names_count() -> None:
    first, second = LinearLayer(3, 2), LinearLayer(2, 1)
    forward, backward = LayerCollection({"a": first, "b": second}), LayerCollection({"b": second, "a": first})
    assert forward != backward and dict(forward) == dict(backward)
    renamed = LayerCollection()
    renamed.add_layer("a", first, ["x.weight", "x.bias"])
    assert renamed != LayerCollection({"a": first})
    with pytest.raises(LayerCollectionMismatchError, match=r"x\.weight"):
        LayerCollection({"a": first}).check_same(renamed)


def test_equal_collections_built_apart_agree() -> None:
    one, other = LayerCollection.from_model(convnet()), LayerCollection.from_model(convnet())
    assert one == other and one == LayerCollection(one) and one == copy.deepcopy(one)
    one.check_same(other)
    assert one != "0" and one.__hash__ is None


def test_from_model_leaves_the_model_alone() -> None:
    model = tied_head()
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    LayerCollection.from_model(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_some_layers_keep_names_rules_and_structure() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2))
    model[2].weight = model[0].weight
    whole = LayerCollection.from_model(model)
    part = whole.restricted(["3", "0.weight" if "0.weight" in whole else "0"])
    assert list(part) == [layer_id for layer_id in whole if layer_id in part]
    for layer_id in part:
        assert part.parameter_names[layer_id] == whole.parameter_names[layer_id]
        assert part.structure(layer_id) == whole.structure(layer_id)
    assert part.rules == whole.rules
    whole.check_contains(part)
    with pytest.raises(LayerCollectionMismatchError, match=r"the layers \['head'\] are not in a collection that has"):
        whole.restricted(["head"])
