"""PVector: both forms against plain flat tensors, and vectors that follow a model."""

import copy
import operator
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nngeo_core.errors import LayerCollectionMismatchError, ShapeError
from nngeo_core.layers import sources
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.layer import LinearLayer, ParameterLayer
from nngeo_core.vectors.pvector import PVector, random_pvector, random_pvector_dict

LAYERS = LayerCollection(
    {"0": LinearLayer(3, 4), "2": LinearLayer(4, 2, bias=False), "3": ParameterLayer((("s", ()),))}
)
D = 16 + 8 + 1
DRAWS = [random_pvector, random_pvector_dict]
OPERATIONS = [operator.add, operator.sub, operator.mul, operator.truediv]

Draw = Callable[..., PVector]


def draw(kind: Draw, seed: int) -> PVector:
    return kind(LAYERS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def flat(vector: PVector) -> Tensor:
    return vector.get_flat_representation()


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()


NET_LAYERS = LayerCollection({"0": LinearLayer(3, 4), "2": LinearLayer(4, 2, bias=False)})


@pytest.mark.parametrize("kind", DRAWS)
def test_forms_convert_into_each_other(kind: Draw) -> None:
    v = draw(kind, 0)
    coordinates = v.get_dict_representation()
    assert {layer_id: [tuple(t.shape) for t in held] for layer_id, held in coordinates.items()} == {
        "0": [(4, 3), (4,)],
        "2": [(2, 4)],
        "3": [()],
    }
    assert torch.equal(flat(v), torch.cat([t.flatten() for held in coordinates.values() for t in held]))
    assert torch.equal(flat(PVector(LAYERS, dict_repr=coordinates)), flat(v))
    assert torch.equal(flat(v)[LAYERS.slices()["2"]].view(2, 4), coordinates["2"][0])
    assert v.size() == (D,) and flat(v).shape == (D,) and flat(v).dtype == torch.float64


def test_random_vectors_follow_the_generator_and_are_standard_normal() -> None:
    for kind in DRAWS:
        assert torch.equal(flat(draw(kind, 0)), flat(draw(kind, 0)))
    layers = LayerCollection({"fc": LinearLayer(200, 100)})
    values = flat(random_pvector_dict(layers, generator=torch.Generator().manual_seed(0)))
    error = layers.numel() ** -0.5
    assert abs(values.mean()) < 4 * error and abs(values.var() - 1) < 4 * 2**0.5 * error


def test_noncontiguous_flat_tensors_are_taken_as_they_are() -> None:
    columns = torch.randn(D, 2, dtype=torch.float64)
    v = PVector(LAYERS, vector_repr=columns[:, 1])
    assert torch.equal(v.get_dict_representation()["2"][0].flatten(), columns[16:24, 1])


@pytest.mark.parametrize("other", DRAWS)
@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_vector_arithmetic_is_that_of_flat_tensors(operation, kind: Draw, other: Draw) -> None:
    v, w = draw(kind, 0), draw(other, 1)
    expected = operation(flat(v), flat(w))
    assert torch.equal(flat(operation(v, w)), expected)
    assert torch.equal(flat(v), flat(draw(kind, 0)))
    held = [t.data_ptr() for t in v._tensors]
    result = getattr(operator, f"i{operation.__name__}")(v, w)
    assert result is v and [t.data_ptr() for t in v._tensors] == held
    assert torch.equal(flat(v), expected)


@pytest.mark.parametrize("scalar", [2, 0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64), np.float32(0.5)])
@pytest.mark.parametrize("kind", DRAWS)
def test_scalars_on_both_sides(kind: Draw, scalar) -> None:
    v, number = draw(kind, 0), float(scalar)
    for operation in OPERATIONS:
        assert torch.equal(flat(operation(v, scalar)), operation(flat(v), number))
        w = v.clone()
        getattr(operator, f"i{operation.__name__}")(w, scalar)
        assert torch.equal(flat(w), operation(flat(v), number))
    for operation in OPERATIONS[:3]:
        left = operation(scalar, v)
        assert isinstance(left, PVector) and torch.equal(flat(left), operation(number, flat(v)))
        assert flat(left).dtype == torch.float64
    assert torch.equal(flat(-v), -flat(v))


def test_in_place_scalar_taken_from_the_vector_itself() -> None:
    v = draw(random_pvector_dict, 0)
    expected = flat(v) / flat(v)[0]
    v /= v.get_dict_representation()["0"][0][0, 0]
    torch.testing.assert_close(flat(v), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("other", DRAWS)
@pytest.mark.parametrize("kind", DRAWS)
def test_inner_product(kind: Draw, other: Draw) -> None:
    v, w = draw(kind, 0), draw(other, 1)
    expected = torch.dot(flat(v), flat(w))
    for value in (v @ w, v.dot(w)):
        assert value.ndim == 0
        torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("p", [0, 0.5, 1, 2, 3, float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", DRAWS)
def test_norms(kind: Draw, p: float) -> None:
    v = draw(kind, 0)
    value = v.norm(p)
    assert value.ndim == 0
    assert float(value) == pytest.approx(float(np.linalg.norm(flat(v).numpy(), p)), rel=1e-13)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_norms_have_all_digits_of_numbers_of_any_size(scale: float) -> None:
    layers = LayerCollection({"": LinearLayer(1_000_000, 1, bias=False)})
    v = PVector(layers, vector_repr=torch.full((1_000_000,), scale))
    assert float(v.norm()) == pytest.approx(1000 * scale, rel=1e-6)
    leaf = torch.tensor([3.0, 4.0], requires_grad=True)
    PVector(LayerCollection({"": LinearLayer(2, 1, bias=False)}), vector_repr=leaf).norm().backward()
    assert torch.allclose(leaf.grad, torch.tensor([0.6, 0.8]))


def test_wrong_operands_are_refused() -> None:
    v = draw(random_pvector, 0)
    with pytest.raises(
        ShapeError, match=r"a PVector combines with a PVector or a scalar, got a tensor of shape \(25,\)"
    ):
        v + flat(v)
    with pytest.raises(ShapeError, match=r"got a tensor of shape \(1,\)"):
        torch.ones(1) * v
    with pytest.raises(TypeError, match="got str"):
        v * "2"  # type: ignore[operator]
    with pytest.raises(TypeError, match="got ndarray"):
        np.ones(D) * v
    with pytest.raises(TypeError, match="unsupported operand"):
        v @ 2  # type: ignore[operator]


@pytest.mark.parametrize("operation", [*OPERATIONS, operator.iadd, operator.matmul])
def test_vectors_of_other_collections_are_refused(operation) -> None:
    v, w = random_pvector(NET_LAYERS), random_pvector(LayerCollection({"0": LinearLayer(3, 4)}))
    before = flat(v).clone()
    with pytest.raises(LayerCollectionMismatchError, match="'2'.* in one, nothing in the other"):
        operation(v, w)
    assert torch.equal(flat(v), before)


def test_constructor_wants_one_representation_of_the_right_shape() -> None:
    v = draw(random_pvector_dict, 0)
    coordinates = v.get_dict_representation()
    with pytest.raises(ValueError, match="either vector_repr or dict_repr, and not both"):
        PVector(LAYERS)
    with pytest.raises(ValueError, match="and not both"):
        PVector(LAYERS, vector_repr=flat(v), dict_repr=coordinates)
    with pytest.raises(ShapeError, match=r"must have shape \(25,\), got \(24,\)"):
        PVector(LAYERS, vector_repr=flat(v)[1:])
    with pytest.raises(
        ShapeError, match=r"layer '2' has parameters of shapes \{'weight': \(2, 4\)\}, got \(\(4, 2\),\)"
    ):
        PVector(LAYERS, dict_repr={**coordinates, "2": (torch.ones(4, 2),)})
    with pytest.raises(LayerCollectionMismatchError, match=r"must have layers \['0', '2', '3'\], got \['0', '2'\]"):
        PVector(LAYERS, dict_repr={"0": coordinates["0"], "2": coordinates["2"]})
    with pytest.raises(ValueError, match="empty: add layers"):
        PVector(LayerCollection(), vector_repr=torch.ones(0))


def test_dict_in_another_order_follows_the_collection() -> None:
    v = draw(random_pvector_dict, 0)
    backwards = dict(reversed(v.get_dict_representation().items()))
    assert torch.equal(flat(PVector(LAYERS, dict_repr=backwards)), flat(v))


def test_from_model_follows_the_model_and_keeps_the_graph() -> None:
    model = net()
    w = PVector.from_model(model, NET_LAYERS)
    fixed = w.detach().clone()
    (w.get_dict_representation()["0"][0] * 3).sum().backward()
    assert torch.equal(model[0].weight.grad, torch.full((4, 3), 3.0, dtype=torch.float64))
    with torch.no_grad():
        model[2].weight += 1
    assert torch.equal(flat(w), torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(flat(w - fixed), torch.cat([torch.zeros(16), torch.ones(8)]).double())


def test_from_model_takes_all_layers_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = SimpleNamespace(name="linear", claims_subtree=False, check=lambda module: None)
    rule.parts, rule.structure = lambda module: (("weight", "bias"),), lambda module, names: None
    rule.describe = lambda module: LinearLayer(module.in_features, module.out_features, module.bias is not None)
    table = SimpleNamespace(rule={nn.Linear: rule}.get, resolve_rule=lambda module: None)
    monkeypatch.setattr(sources, "registry", table)
    model = net()
    assert PVector.from_model(model).layer_collection == NET_LAYERS
    assert PVector.from_model_grad(model).layer_collection == NET_LAYERS


def test_quadratic_penalty_backpropagates_into_the_model() -> None:
    model = net()
    anchor = 0.5 * PVector.from_model(model, NET_LAYERS).detach()
    importance = random_pvector(NET_LAYERS, dtype=torch.float64)
    step = PVector.from_model(model, NET_LAYERS) - anchor
    (step @ (importance * step)).backward()
    expected = 2 * importance * step.detach()
    torch.testing.assert_close(flat(PVector.from_model_grad(model, NET_LAYERS)), flat(expected), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "follower", [lambda w: w, PVector.detach, lambda w: w.restrict(NET_LAYERS), lambda w: w.to("cpu")]
)
def test_in_place_arithmetic_never_changes_a_model(follower) -> None:
    model = net()
    w = follower(PVector.from_model(model, NET_LAYERS))
    before = flat(w).clone()
    with pytest.raises(ValueError, match=r"use .detach\(\).clone\(\) first, or add_to_model / copy_to_model"):
        w += 1
    with pytest.raises(ValueError, match="the model's own parameters"):
        w *= w
    assert torch.equal(flat(PVector.from_model(model, NET_LAYERS)), before)
    fixed = w.detach().clone()
    fixed += 1
    assert torch.equal(flat(fixed), before + 1) and torch.equal(flat(w), before)


def test_part_converted_followers_are_guarded() -> None:
    model = net()
    model[2].float()
    w = PVector.from_model(model, NET_LAYERS).detach().to(dtype=torch.float32)
    with pytest.raises(ValueError, match="the model's own parameters"):
        w += 1
    doubled = PVector.from_model(net().float(), NET_LAYERS).detach().to(dtype=torch.float64)
    doubled *= 2
    assert flat(doubled).dtype == torch.float64


def test_from_model_grad_is_a_snapshot_with_zeros_for_none() -> None:
    model = net()
    model[0](torch.ones(5, 3, dtype=torch.float64)).sum().backward()
    g = PVector.from_model_grad(model, NET_LAYERS)
    expected = torch.cat([torch.full((16,), 5.0), torch.zeros(8)]).double()
    assert torch.equal(flat(g), expected)
    assert not flat(g).requires_grad
    model.zero_grad(set_to_none=False)
    assert torch.equal(flat(g), expected)
    g *= 2
    assert model[0].bias.grad.abs().max() == 0 and model[2].weight.grad is None


def test_sparse_gradients_become_dense() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    layers = LayerCollection({"": ParameterLayer((("weight", (4, 2)),))})
    assert flat(PVector.from_model_grad(embedding, layers)).tolist() == [0, 0, 2, 2, 0, 0, 1, 1]


@pytest.mark.parametrize("kind", DRAWS)
def test_restrict_takes_some_layers(kind: Draw) -> None:
    v = draw(kind, 0)
    part = LayerCollection({"3": LAYERS["3"], "0": LAYERS["0"]})
    restricted = v.restrict(part)
    assert restricted.layer_collection is part
    assert torch.equal(flat(restricted), torch.cat([flat(v)[24:], flat(v)[:16]]))
    with pytest.raises(LayerCollectionMismatchError, match="layer '9' .* only the layers"):
        v.restrict(LayerCollection({"9": LinearLayer(3, 4)}))
    with pytest.raises(LayerCollectionMismatchError, match="layer '0' .*bias=False.*bias=True"):
        v.restrict(LayerCollection({"0": LinearLayer(3, 4, bias=False)}))


@pytest.mark.parametrize("kind", DRAWS)
def test_vectors_are_written_into_the_model(kind: Draw) -> None:
    model = net()
    v = kind(NET_LAYERS, dtype=torch.float32)
    before = flat(PVector.from_model(model, NET_LAYERS).detach().clone())
    identities = [id(p) for p in model.parameters()]
    v.add_to_model(model)
    assert torch.equal(flat(PVector.from_model(model, NET_LAYERS)), before + flat(v))
    v.copy_to_model(model)
    assert torch.equal(flat(PVector.from_model(model, NET_LAYERS)), flat(v).double())
    assert [id(p) for p in model.parameters()] == identities
    assert all(p.requires_grad and p.is_leaf and p.dtype == torch.float64 for p in model.parameters())


@pytest.mark.parametrize("kind", DRAWS)
def test_optimizers_step_along_vectors_written_into_the_gradients(kind: Draw) -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    v, before = kind(NET_LAYERS, dtype=torch.float32), flat(PVector.from_model(model, NET_LAYERS).detach().clone())
    v.copy_to_model_grad(model)
    v *= 2
    v.copy_to_model_grad(model)
    held = flat(v).clone()
    v *= 0
    assert torch.equal(flat(PVector.from_model_grad(model, NET_LAYERS)), held.double())
    assert all(p.grad.dtype == torch.float64 and not p.grad.requires_grad for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    assert torch.allclose(flat(PVector.from_model(model, NET_LAYERS)), before - held / 2)


@pytest.mark.parametrize("write", [PVector.add_to_model, PVector.copy_to_model, PVector.copy_to_model_grad])
def test_models_of_other_shapes_stay_unchanged(write) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5, bias=False))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LayerCollectionMismatchError, match="'2.weight' has shape"):
        write(random_pvector(NET_LAYERS), model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_part_of_a_model_is_written_alone() -> None:
    model = net()
    first = model[0].weight.detach().clone()
    random_pvector(LayerCollection({"2": LinearLayer(4, 2, bias=False)})).copy_to_model(model)
    assert torch.equal(model[0].weight, first)


@pytest.mark.parametrize("kind", DRAWS)
def test_detach_clone_and_conversion(kind: Draw) -> None:
    v = draw(kind, 0)
    leaf = flat(v).clone().requires_grad_()
    w = PVector(LAYERS, vector_repr=leaf)
    copied = w.clone()
    (copied @ v).backward()
    assert torch.equal(leaf.grad, flat(v))
    assert not flat(w.detach()).requires_grad and w.detach()._tensors[0].data_ptr() == leaf.data_ptr()
    assert v.to() is v and v.to("cpu", torch.float64) is v
    assert torch.equal(flat(v.to(dtype=torch.float32)), flat(v).float())


def test_flat_vector_owns_the_tensor_it_was_given() -> None:
    tensor = torch.ones(D)
    v = PVector(LAYERS, vector_repr=tensor)
    v *= 3
    assert torch.equal(tensor, torch.full((D,), 3.0))
    v.get_dict_representation()["3"][0].zero_()
    assert tensor[-1] == 0


def test_repr_says_form_size_dtype_and_device() -> None:
    assert repr(draw(random_pvector, 0)) == "PVector(flat, d=25, layers=3, torch.float64, cpu)"
    assert repr(draw(random_pvector_dict, 0)) == "PVector(dict, d=25, layers=3, torch.float64, cpu)"
