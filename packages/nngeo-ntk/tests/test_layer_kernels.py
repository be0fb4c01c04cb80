"""layer_kernels: each is that of its parameters alone, and they add up."""

import pytest
import torch

from nngeo_core import GramMatrix, LayerCollection
from nngeo_core.testing import MODELS, output_jacobian, relative_error
from nngeo_ntk import layer_kernels


@pytest.mark.parametrize("representation", ["dense", "blockdiag", "trace"])
@pytest.mark.parametrize("model", ["conv-groups", "tied-weight-own-bias"])
@pytest.mark.parametrize("budget", [1, None])
def test_they_are_those_of_each_layer_and_add_up(representation: str, model: str, budget: int | None) -> None:
    case = MODELS[model]()
    found = layer_kernels(case.model, case.inputs, representation, memory_budget=budget)
    layers = LayerCollection.from_model(case.model)
    assert list(found) == list(layers)
    for layer_id, kernel in found.items():
        rows = output_jacobian(case.model, case.inputs, layers.parameter_names[layer_id])
        expected = torch.einsum("cnd,kmd->cnkm", rows, rows)
        if representation == "trace":
            expected = torch.einsum("cncm->nm", expected)[None, :, None] / len(rows)
        elif representation == "blockdiag":
            expected = expected * torch.eye(len(rows)).to(expected)[:, None, :, None]
        assert relative_error(kernel.get_dense_tensor(), expected) <= 1e-10
    first, *others = found.values()
    whole = GramMatrix(case.model, case.inputs, representation)
    assert relative_error(sum(others, start=first).get_dense_tensor(), whole.get_dense_tensor()) <= 1e-10


def test_of_a_cross_kernel() -> None:
    case = MODELS["mlp"]()
    found = layer_kernels(case.model, case.inputs, loader2=case.inputs)
    assert not any(kernel.symmetric for kernel in found.values())


def test_a_layer_that_is_not_called_has_a_kernel_of_zeros() -> None:
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 1), "unused": torch.nn.Linear(2, 1)})
    found = layer_kernels(model, torch.ones(3, 2), function=lambda x: model["used"](x))
    assert (found["used"].trace().item(), found["unused"].trace().item()) == (9, 0)


def test_a_representation_without_entries_is_refused() -> None:
    with pytest.raises(TypeError, match="stores no entries to tell layers apart"):
        layer_kernels(torch.nn.Linear(2, 1), torch.ones(3, 2), "implicit")
