"""The NNGeometry API manual, walked entry by entry: each is called as documented there, and gives what it says.

Arguments without a default are given by position, in the manual's order, and those with one also by keyword. What is
expected comes from plain autograd (`nngeo_core.testing`) or from the definition that the manual's words give.
"""

import ast
import inspect
import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import nngeo
from nngeo_core.testing import block_diagonal, ekfac_block, fisher, kfac_factors, kronecker_block, quasi_diagonal

from .api_manual import CHANGED, DOCUMENTED

Check = TypeVar("Check", bound=Callable[..., None])
SIGNATURES = {**DOCUMENTED, **CHANGED}
CHECKED: list[str] = []
SIZES = (15, 8)  # Linear(4, 3) and Linear(3, 2)
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]
KINDS = ["BlockDiag", "Dense", "Diag", "EKFAC", "Implicit", "KFAC", "LowRank", "QuasiDiag"]
STORED = {"Dense": 23**2, "BlockDiag": 15**2 + 8**2, "KFAC": 9 + 25 + 4 + 16, "EKFAC": 9 + 25 + 4 + 16 + 23, "Diag": 23}


def entries(*names: str) -> Callable[[Check], Check]:
    """Says which of the manual's entries a test walks."""
    CHECKED.extend(names)
    return lambda check: check


def of_every_kind(method: str) -> Callable[[Check], Check]:
    """The same for a method which the manual lists for several representations, each of them a case of the test."""
    kinds = [kind for kind in KINDS if f"PMat{kind}.{method}" in SIGNATURES]
    CHECKED.extend(f"PMat{kind}.{method}" for kind in kinds)
    return pytest.mark.parametrize("kind", kinds)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def data(seed: int = 1) -> TensorDataset:
    drawn = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(12, 4, generator=drawn, dtype=torch.float64), torch.randint(2, (12,), generator=drawn)
    )


def generator_of(model: nn.Module) -> nngeo.HooksGenerator:
    return nngeo.HooksGenerator(model, nngeo.ClassifLogits())


def matrix(kind: str) -> Any:
    """Built as the manual says: generator by position, examples by keyword, from a loader of (inputs, targets)."""
    return getattr(nngeo, f"PMat{kind}")(generator_of(network()), examples=DataLoader(data(), batch_size=5))


def blocks(split_weight_bias: bool = True) -> tuple[list[Tensor], list[Tensor]]:
    """The blocks of KFAC and EKFAC; unsplit ones are the plain Kronecker products, a bias after its own weights."""
    model, inputs = network(), data().tensors[0]
    exact, starts = fisher(model, inputs, NAMES, "classif_logits"), (slice(0, 15), slice(15, 23))
    kfac, ekfac = [], []
    for path, place in zip(("0", "2"), starts, strict=True):
        factors = kfac_factors(model, inputs, path, "classif_logits")
        kfac.append(kronecker_block(*factors, has_bias=split_weight_bias))
        order = kron_order(model.get_submodule(path)) if not split_weight_bias else slice(None)
        ekfac.append(ekfac_block(exact[place, place][order][:, order], *factors, has_bias=split_weight_bias))
    return kfac, ekfac


def kron_order(layer: nn.Linear) -> Tensor:
    """Where the plain Kronecker product's coordinates lie among the flat ones: each output's weights, then its bias."""
    weights = torch.arange(layer.weight.numel()).view_as(layer.weight)
    biases = layer.weight.numel() + torch.arange(layer.out_features)
    return torch.cat([weights, biases[:, None]], 1).flatten()


@cache
def expected(kind: str) -> Tensor:
    """All entries of the representation, shape (23, 23)."""
    model = network()
    exact = fisher(model, data().tensors[0], NAMES, "classif_logits")
    if kind == "QuasiDiag":
        bias_of = [
            [len(layer.weight.flatten()) + i // layer.in_features for i in range(layer.weight.numel())]
            for layer in (model[0], model[2])
        ]
        parts = [exact[:15, :15], exact[15:, 15:]]
        return torch.block_diag(*(quasi_diagonal(part, places) for part, places in zip(parts, bias_of, strict=True)))
    if kind in ("KFAC", "EKFAC"):
        return torch.block_diag(*blocks()[kind == "EKFAC"])
    found = {"Diag": torch.diag(exact.diag()), "BlockDiag": block_diagonal(exact, SIZES)}
    return found.get(kind, exact)


def vector(model: nn.Module, seed: int = 2) -> tuple[nngeo.PVector, Tensor]:
    flat = torch.randn(23, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nngeo.PVector(nngeo.LayerCollection.from_model(model), flat), flat


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> bool:
    assert found.shape == wanted.shape
    return bool((found - wanted).norm() <= tolerance * wanted.norm())


# What the entries are


@pytest.mark.parametrize("name", SIGNATURES)
def test_an_entry_takes_the_arguments_of_the_manual(name: str) -> None:
    owner, _, method = name.partition(".")
    found = getattr(getattr(nngeo, owner), method) if method else getattr(nngeo, owner)
    if SIGNATURES[name] is None:
        assert inspect.isabstract(found)
        return
    arguments = ast.parse(f"def f{SIGNATURES[name]}: pass").body[0].args
    wanted = [argument.arg for argument in arguments.args]
    defaults = dict(
        zip(wanted[len(wanted) - len(arguments.defaults) :], map(ast.literal_eval, arguments.defaults), strict=True)
    )
    here = list(inspect.signature(found).parameters.values())
    here = here[1:] if here and here[0].name == "self" else here
    required, optional = here[: len(wanted) - len(defaults)], here[len(wanted) - len(defaults) :]
    assert len(required) == len(wanted) - len(defaults)
    assert {p.name: p.default for p in optional[: len(defaults)]} == defaults  # the same names, order and values
    assert all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in optional)  # what came since may be left out


def test_every_entry_is_walked_once() -> None:
    assert sorted(CHECKED) == sorted(SIGNATURES)


# Layers


@entries("AbstractLayer", "Conv2dLayer", "Conv2dLayer.numel", "ConvTranspose2dLayer", "ConvTranspose2dLayer.numel")
@pytest.mark.parametrize("kind", ["Conv2d", "ConvTranspose2d"])
def test_records_of_convolutions_count_their_parameters(kind: str) -> None:
    record, module = getattr(nngeo, f"{kind}Layer"), getattr(nn, kind)
    assert isinstance(record(3, 4, (2, 5)), nngeo.AbstractLayer)
    for bias in (True, False):
        wanted = sum(p.numel() for p in module(3, 4, (2, 5), bias=bias).parameters())
        assert record(3, 4, (2, 5), bias=bias).numel() == record(3, 4, (2, 5), bias).numel() == wanted
    assert record(3, 4, (2, 5)) == record(3, 4, (2, 5), bias=True)


@entries("LayerCollection", "LayerCollection.add_layer", "LayerCollection.numel")
def test_a_collection_is_filled_layer_by_layer() -> None:
    layers = nngeo.LayerCollection()
    assert (len(layers), layers.numel()) == (0, 0)
    layers.add_layer("first", nngeo.Conv2dLayer(1, 2, 3))
    layers.add_layer("second", nngeo.ConvTranspose2dLayer(2, 1, 2, bias=False))
    assert (type(layers.numel()), layers.numel()) == (int, 20 + 8)
    assert nngeo.LayerCollection(layers=dict(layers)) == nngeo.LayerCollection(dict(layers)) == layers


@entries("LayerCollection.from_model", "LayerCollection.add_layer_from_model")
def test_a_collection_is_all_of_a_model_or_some_of_its_modules() -> None:
    model = network()
    whole, part = nngeo.LayerCollection.from_model(model), nngeo.LayerCollection()
    assert whole == nngeo.LayerCollection.from_model(model, ignore_unsupported_layers=False)
    assert whole.numel() == sum(p.numel() for p in model.parameters())
    part.add_layer_from_model(model, model[2])
    assert list(part.values()) == [whole["2"]]
    part.add_layer_from_model(model, model[0])
    assert part.numel() == whole.numel()
    strange = nn.Sequential(nn.Linear(2, 2), nn.PReLU())
    ignoring = nngeo.LayerCollection.from_model(strange, ignore_unsupported_layers=True)
    assert (ignoring.numel(), nngeo.LayerCollection.from_model(strange).numel()) == (6, 7)


@entries("LayerCollection.get_layerid_module_maps", "LayerCollection.parameters")
def test_a_collection_maps_layers_to_modules_and_back() -> None:
    model = network()
    layers = nngeo.LayerCollection.from_model(model)
    layerid_to_module, module_to_layerid = layers.get_layerid_module_maps(model)
    assert list(layerid_to_module.values()) == [model[0], model[2]]
    assert all(module_to_layerid[module] == layer_id for layer_id, module in layerid_to_module.items())
    found = list(layers.parameters(layerid_to_module))
    assert len(found) == 4 and all(p is q for p, q in zip(found, model.parameters(), strict=True))


# Matrices


@entries("PMatAbstract", "PMatAbstract.get_diag", "PMatAbstract.solve", "PMatAbstract.vTMv", "PMatAbstract.size")
@pytest.mark.parametrize("kind", KINDS)
def test_the_abstract_interface_is_every_representations(kind: str) -> None:
    with pytest.raises(TypeError, match="abstract"):
        nngeo.PMatAbstract(generator_of(network()), examples=data().tensors)
    M = matrix(kind)
    v, flat = vector(network())
    wanted = expected(kind)
    assert isinstance(M, nngeo.PMatAbstract)
    assert (M.size(), M.size(0), M.size(dim=1)) == ((23, 23), 23, 23)
    assert close(M.mv(v).get_flat_representation(), wanted @ flat)  # the manual's first example
    assert close(M.trace(), wanted.trace())
    solution = M.solve(v, 0.5).get_flat_representation()
    assert close(wanted @ solution + 0.5 * solution, flat)


@entries(*(f"PMat{kind}" for kind in KINDS))
@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_is_made_from_a_loader_or_one_batch_or_data(kind: str) -> None:
    wanted, made, representation = expected(kind), generator_of(network()), getattr(nngeo, f"PMat{kind}")
    v, flat = vector(network())
    of_batch = representation(made, examples=data().tensors)  # a single batch of (inputs, targets)
    assert close(of_batch.mv(v).get_flat_representation(), wanted @ flat)
    assert representation(made, None, data().tensors).trace() == of_batch.trace()
    of_data = representation(made, data=of_batch.data)
    assert close(of_data.mv(v).get_flat_representation(), wanted @ flat)
    for given in ({}, {"data": of_batch.data, "examples": data().tensors}):
        with pytest.raises(ValueError, match="data.*examples|examples.*data"):
            representation(made, **given)


@pytest.mark.parametrize("kind", STORED)
def test_a_representation_stores_what_the_manual_counts(kind: str) -> None:
    assert sum(tensor.numel() for tensor in matrix(kind).tensors().values()) == STORED[kind]


def test_a_quasi_diagonal_stores_at_most_two_numbers_a_parameter() -> None:
    assert sum(tensor.numel() for tensor in matrix("QuasiDiag").tensors().values()) == 23 + 12 + 6 <= 2 * 23


@of_every_kind("get_diag")
def test_get_diag_is_a_tensor_of_the_diagonal(kind: str) -> None:
    assert close(matrix(kind).get_diag(), expected(kind).diag())


@of_every_kind("vTMv")
def test_vTMv_is_the_quadratic_form(kind: str) -> None:
    v, flat = vector(network())
    assert close(matrix(kind).vTMv(v), flat @ expected(kind) @ flat)


@of_every_kind("solve")
def test_solve_is_the_damped_solution(kind: str) -> None:
    M, (v, flat) = matrix(kind), vector(network())
    inside = M.mv(v)
    for x, regul in ((M.solve(v, regul=1e-2), 1e-2), (M.solve(v, 1e-2), 1e-2), (M.solve(inside), 1e-8)):
        right = inside.get_flat_representation() if regul == 1e-8 else flat
        solution = x.get_flat_representation()
        assert isinstance(x, nngeo.PVector)
        assert close(expected(kind) @ solution + regul * solution, right, 1e-7 if regul == 1e-8 else 1e-10)


def test_dense_solves_by_either_implementation() -> None:
    M, (v, flat) = matrix("Dense"), vector(network())
    for x in (M.solve(v, regul=1e-2, impl="solve"), M.solve(v, 1e-2, "eigh")):
        solution = x.get_flat_representation()
        assert close(expected("Dense") @ solution + 1e-2 * solution, flat)


def test_kfac_solves_with_the_factored_damping() -> None:
    """(G + sqrt(r)/pi I) (x) (A + pi sqrt(r) I) with pi^2 = (tr A / dim A) / (tr G / dim G), by Martens & Grosse 2015."""
    model, inputs, damped = network(), data().tensors[0], []
    for path in ("0", "2"):
        (a,), (g,) = kfac_factors(model, inputs, path, "classif_logits")
        pi = math.sqrt(a.trace() / len(a) / (g.trace() / len(g)))
        a, g = a + pi * 0.1 * torch.eye(len(a)).double(), g + 0.1 / pi * torch.eye(len(g)).double()
        damped.append(kronecker_block(a[None], g[None], has_bias=True))
    v, flat = vector(model)
    x = matrix("KFAC").solve(v, regul=1e-2, use_pi=True)
    assert close(torch.block_diag(*damped) @ x.get_flat_representation(), flat)


@of_every_kind("mm")
def test_mm_is_the_product_in_the_same_representation(kind: str) -> None:
    M, (v, flat) = matrix(kind), vector(network())
    product = M.mm(matrix(kind))
    assert type(product) is type(M)
    assert close(product.get_dense_tensor(), expected(kind) @ expected(kind))
    assert close(product.mv(v).get_flat_representation(), expected(kind) @ expected(kind) @ flat)


@entries("PMatKFAC.get_dense_tensor", "PMatEKFAC.get_dense_tensor")
@pytest.mark.parametrize("kind", ["KFAC", "EKFAC"])
def test_kronecker_matrices_are_written_out_in_both_orders(kind: str) -> None:
    M = matrix(kind)
    assert close(M.get_dense_tensor(), expected(kind))
    assert torch.equal(M.get_dense_tensor(split_weight_bias=True), M.get_dense_tensor())
    unsplit = torch.block_diag(*blocks(split_weight_bias=False)[kind == "EKFAC"])
    assert close(M.get_dense_tensor(split_weight_bias=False), unsplit)
    assert not torch.allclose(unsplit, expected(kind))
    assert close(M.get_diag(split_weight_bias=False), unsplit.diag())


@entries("PMatEKFAC.get_KFE")
@pytest.mark.parametrize("split_weight_bias", [True, False])
def test_get_KFE_has_each_layers_eigenvectors(split_weight_bias: bool) -> None:
    M = matrix("EKFAC")
    found = M.get_KFE(split_weight_bias=split_weight_bias)
    assert [(name, tuple(u.shape)) for name, u in found.items()] == [("0", (15, 15)), ("2", (8, 8))]
    for (name, u), kfac in zip(found.items(), blocks(split_weight_bias)[0], strict=True):
        rotated = u.T @ kfac @ u  # diagonal: these are eigenvectors of the Kronecker product
        assert close(u.T @ u, torch.eye(len(u), dtype=torch.float64))
        assert (rotated - torch.diag(rotated.diag())).norm() < 1e-12 * kfac.norm()
        block = blocks(split_weight_bias)[1][name == "2"]
        assert close(u @ M.data[name].values.flatten().diag() @ u.T, block)


@entries("PMatEKFAC.update_diag")
def test_update_diag_takes_the_models_current_parameters() -> None:
    model = network()
    M = nngeo.PMatEKFAC(generator_of(model), examples=data().tensors)
    basis = M.get_KFE()
    with torch.no_grad():
        model[0].weight += 0.3
    M.update_diag(data(seed=5).tensors)
    exact = fisher(model, data(seed=5).tensors[0], NAMES, "classif_logits")
    for (name, u), place in zip(M.get_KFE().items(), (slice(0, 15), slice(15, 23)), strict=True):
        assert torch.equal(u, basis[name])
        assert close(M.data[name].values.flatten(), (u.T @ exact[place, place] @ u).diag())


@entries("bdot")
def test_bdot_is_a_batched_dot_product() -> None:
    A, B = torch.randn(2, 5, 3)
    assert torch.allclose(nngeo.bdot(A, B), torch.stack([a @ b for a, b in zip(A, B, strict=True)]))


# Vectors


@entries("FVector", "FVector.get_flat_representation", "random_fvector")
def test_vectors_of_the_function_space() -> None:
    values = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(nngeo.FVector(vector_repr=values).get_flat_representation(), torch.arange(6.0))
    drawn = nngeo.random_fvector(500, n_output=4, device="cpu")
    assert (drawn.size(), nngeo.random_fvector(7).size()) == ((4, 500), (1, 7))
    assert drawn.get_flat_representation().shape == (2000,)
    assert abs(drawn.get_flat_representation().std() - 1) < 6 / math.sqrt(4000)  # six standard errors


@entries("PVector", "PVector.get_dict_representation", "PVector.get_flat_representation", "PVector.size")
def test_vectors_are_made_flat_or_from_a_dict() -> None:
    model = network()
    layers = nngeo.LayerCollection.from_model(model)
    flat = torch.arange(23.0)
    v = nngeo.PVector(layers, vector_repr=flat)
    by_layer = v.get_dict_representation()
    assert [tuple(map(tuple, map(torch.Tensor.size, parts))) for parts in by_layer.values()] == [
        ((3, 4), (3,)),
        ((2, 3), (2,)),
    ]
    again = nngeo.PVector(layers, dict_repr=by_layer)
    assert torch.equal(again.get_flat_representation(), flat)  # in the order of the layer collection
    assert torch.equal(nngeo.PVector(layers, flat).get_flat_representation(), flat)
    assert v.size() == again.size() == (layers.numel(),)


@entries("PVector.from_model", "PVector.from_model_grad")
def test_vectors_come_from_a_models_parameters_and_gradients() -> None:
    model = network()
    parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(nngeo.PVector.from_model(model).get_flat_representation(), parameters)
    model(data().tensors[0]).square().sum().backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.equal(nngeo.PVector.from_model_grad(model).get_flat_representation(), gradients)


@entries("PVector.add_to_model", "PVector.copy_to_model")
def test_vectors_change_a_model_in_place() -> None:
    model = network()
    held, before = list(model.parameters()), torch.cat([p.detach().flatten() for p in model.parameters()])
    v, flat = vector(model)
    v.add_to_model(model)
    assert torch.equal(nngeo.PVector.from_model(model).get_flat_representation(), before + flat)
    v.copy_to_model(model)
    assert torch.equal(nngeo.PVector.from_model(model).get_flat_representation(), flat)
    assert all(p is q for p, q in zip(held, model.parameters(), strict=True))


@entries("PVector.clone", "PVector.detach")
def test_vectors_are_cloned_and_detached() -> None:
    model = network()
    w = nngeo.PVector.from_model(model)
    copy, apart = w.clone(), w.detach()
    assert copy.get_flat_representation().requires_grad and not apart.get_flat_representation().requires_grad
    before = w.get_flat_representation().clone()
    with torch.no_grad():
        model[0].bias += 1
    assert torch.equal(copy.get_flat_representation(), before)
    assert not torch.equal(w.get_flat_representation(), before)


@entries("PVector.dot", "PVector.norm")
def test_vectors_have_dot_products_and_norms() -> None:
    (v, first), (w, second) = vector(network()), vector(network(), seed=3)
    assert close(v.dot(w), (first * second).sum())
    assert close(v.norm(), first.square().sum().sqrt()) and torch.equal(v.norm(p=2), v.norm())
    assert close(v.norm(p=1), first.abs().sum()) and close(v.norm(3), first.abs().pow(3).sum() ** (1 / 3))


@entries("random_pvector", "random_pvector_dict")
@pytest.mark.parametrize(("draw", "form"), [("random_pvector", "flat"), ("random_pvector_dict", "dict")])
def test_random_vectors_are_standard_normal(draw: str, form: str) -> None:
    layers = nngeo.LayerCollection.from_model(nn.Linear(100, 100))
    v = getattr(nngeo, draw)(layers, device="cpu")
    values = v.get_flat_representation()
    assert repr(v).startswith(f"PVector({form},")  # what it uses internally
    assert v.size() == (10100,) and values.device.type == "cpu"
    assert abs(values.mean()) < 6 / math.sqrt(10100) and abs(values.std() - 1) < 6 / math.sqrt(2 * 10100)
    assert not torch.equal(getattr(nngeo, draw)(layers).get_flat_representation(), values)


def test_the_first_example_of_the_manual() -> None:
    torch.manual_seed(0)
    model, drawn = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 10)).double(), torch.randn(30, 5).double()
    loader = DataLoader(TensorDataset(drawn, torch.zeros(30)), batch_size=8)
    F_kfac = nngeo.FIM(
        model=model,
        loader=loader,
        representation=nngeo.PMatKFAC,
        n_output=10,
        variant="classif_logits",
        device="cpu",
    )
    factors = [kfac_factors(model, drawn, path, "classif_logits") for path in ("0", "2")]
    assert close(F_kfac.trace(), sum(a.diagonal(0, 1, 2).sum() * g.diagonal(0, 1, 2).sum() for a, g in factors))
    v = nngeo.PVector.from_model(model)
    wanted = torch.block_diag(*(kronecker_block(*pair, has_bias=True) for pair in factors))
    assert close(F_kfac.mv(v).get_flat_representation(), wanted @ v.get_flat_representation())
