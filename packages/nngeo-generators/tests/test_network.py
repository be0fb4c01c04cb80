"""Network: a model called with other parameters."""

import pytest
import torch
from torch import nn

from nngeo_generators.network import Network


def test_the_parameters_are_swapped_for_the_call_only() -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    kept, x = model[0].weight.detach().clone(), torch.tensor([[3.0, 4.0]])
    parameters = {"0.weight": torch.tensor([[1.0, 10.0]]), "0.bias": torch.tensor([0.5])}
    assert Network(model, model).with_parameters(parameters, x).tolist() == [[43.5]]
    assert model[0].weight.equal(kept) and isinstance(model[0].weight, nn.Parameter)


def test_the_others_stay() -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    nn.init.ones_(model[0].weight)
    x = torch.tensor([[3.0, 4.0]])
    assert Network(model, model).with_parameters({"0.bias": torch.tensor([0.5])}, x).tolist() == [[7.5]]


def test_a_tied_parameter_is_swapped_in_all_its_places() -> None:
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    swapped = {"0.weight": torch.tensor([[3.0]])}
    assert Network(model, model).with_parameters(swapped, torch.ones(1, 1)).tolist() == [[9.0]]


def test_a_module_registered_twice_gets_its_own_parameters_back() -> None:
    """`functional_call` with tied weights leaves the replacement in the model."""
    shared = nn.Linear(1, 1, bias=False)
    weight, model = shared.weight, nn.Sequential(shared, shared)
    swapped = {"0.weight": torch.tensor([[3.0]])}
    assert Network(model, lambda batch: model(batch)).with_parameters(swapped, torch.ones(1, 1)).tolist() == [[9.0]]
    assert shared.weight is weight


def test_an_exception_leaves_the_parameters() -> None:
    model = nn.Linear(1, 1)
    weight = model.weight

    def fail(batch: torch.Tensor) -> torch.Tensor:
        assert model.weight is not weight
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Network(model, fail).with_parameters({"weight": torch.zeros(1, 1)}, torch.ones(1, 1))
    assert model.weight is weight


def test_a_function_that_closes_over_the_model_sees_them_too() -> None:
    model = nn.Linear(1, 1, bias=False)
    network = Network(model, lambda batch: batch["scale"] * nn.functional.linear(batch["x"], model.weight))
    batch = {"x": torch.ones(1, 1), "scale": torch.tensor(2.0)}
    assert network.with_parameters({"weight": torch.tensor([[3.0]])}, batch).tolist() == [[6.0]]


def test_the_model_keeps_its_mode() -> None:
    model = nn.Sequential(nn.Linear(1, 1)).eval()
    network = Network(model, model)
    network(torch.ones(1, 1))
    assert not model.training and not model[0].training


def test_all_is_in_float64_for_the_call_only() -> None:
    model = nn.Sequential(nn.Embedding(3, 2), nn.Flatten(), nn.BatchNorm1d(4)).eval()
    batch = (torch.tensor([[0, 2], [1, 1]]), torch.ones(2, 4))
    network = Network(model, lambda batch: model(batch[0]) * batch[1])
    found = network.in_float64(batch)
    assert found.dtype == torch.float64
    assert torch.allclose(found.float(), network(batch))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}


def test_a_parameter_that_is_also_a_buffer_is_replaced_in_both_places() -> None:
    layer = nn.Linear(1, 1, bias=False)
    model = nn.Sequential(layer)
    model.register_buffer("again", layer.weight)
    network = Network(model, lambda batch: model(batch) + model.again)
    assert network.with_parameters({"0.weight": torch.tensor([[3.0]])}, torch.full((1, 1), 2.0)).tolist() == [[9.0]]
    assert model.again is layer.weight
