"""binary_function: its kernel is that of the difference."""

import pytest
import torch
from torch import nn

from nngeo_core import GramMatrix, ShapeError
from nngeo_core.testing import MODELS, relative_error
from nngeo_ntk import binary_function


def test_its_kernel_is_that_of_a_difference_of_outputs() -> None:
    case = MODELS["conv"]()
    whole = GramMatrix(case.model, case.inputs).get_dense_tensor()
    v = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    expected = torch.einsum("c,cnkm,k->nm", v, whole, v)
    for batch in (case.inputs, (case.inputs,), (case.inputs, torch.zeros(5))):
        found = GramMatrix(case.model, batch, function=binary_function(case.model, 0, 2)).get_dense_tensor()
        assert found.shape == (1, 5, 1, 5)
        assert relative_error(found[0, :, 0], expected) <= 1e-10


def test_a_function_of_ones_own_can_be_beneath() -> None:
    model = nn.Linear(2, 3)
    x = torch.ones(1, 2)
    found = binary_function(model, 1, 0, lambda inputs: 2 * model(inputs))(x)
    assert torch.equal(found, 2 * (model(x)[:, :1] - model(x)[:, 1:2]))


@pytest.mark.parametrize("classes", [(1, 1), (-1, 0)])
def test_classes_that_are_none_are_refused(classes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="two different classes"):
        binary_function(nn.Identity(), *classes)


def test_outputs_without_these_classes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"classes 0 and 3 of outputs of shape \(2, 3\)"):
        binary_function(nn.Identity(), 0, 3)(torch.ones(2, 3))
