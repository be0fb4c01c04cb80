"""Layer records: shapes and counts equal to those of the torch modules they describe."""

import pytest
import torch
from torch import nn

from nngeo_core.layers.layer import Conv2dLayer, ConvTranspose2dLayer, Layer, LinearLayer, ParameterLayer

CASES = [
    pytest.param(LinearLayer(5, 3), nn.Linear(5, 3), id="linear"),
    pytest.param(LinearLayer(5, 3, bias=False), nn.Linear(5, 3, bias=False), id="linear-no-bias"),
    pytest.param(Conv2dLayer(4, 6, 3), nn.Conv2d(4, 6, 3), id="conv"),
    pytest.param(Conv2dLayer(4, 6, (3, 5), groups=2), nn.Conv2d(4, 6, (3, 5), groups=2), id="conv-groups"),
    pytest.param(Conv2dLayer(4, 4, 1, bias=False, groups=4), nn.Conv2d(4, 4, 1, bias=False, groups=4), id="depthwise"),
    pytest.param(ConvTranspose2dLayer(4, 6, (2, 3)), nn.ConvTranspose2d(4, 6, (2, 3)), id="transposed"),
    pytest.param(
        ConvTranspose2dLayer(4, 6, 2, groups=2), nn.ConvTranspose2d(4, 6, 2, groups=2), id="transposed-groups"
    ),
    pytest.param(ParameterLayer((("bias", (3,)),)), nn.ParameterDict({"bias": torch.ones(3)}), id="parameters"),
]


@pytest.mark.parametrize(("layer", "module"), CASES)
def test_shapes_are_those_of_the_module(layer: Layer, module: nn.Module) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert layer.parameter_shapes() == expected
    assert list(layer.parameter_shapes()) == list(expected)
    assert layer.numel() == sum(parameter.numel() for parameter in module.parameters())


def test_records_compare_by_value_and_type() -> None:
    assert Conv2dLayer(4, 6, 3) == Conv2dLayer(4, 6, (3, 3))
    assert hash(Conv2dLayer(4, 6, 3)) == hash(Conv2dLayer(4, 6, (3, 3)))
    assert Conv2dLayer(4, 4, 3) != ConvTranspose2dLayer(4, 4, 3)
    assert LinearLayer(4, 6) != LinearLayer(4, 6, bias=False)


def test_parameter_layer_normalises_shapes_and_counts_scalars() -> None:
    layer = ParameterLayer((("scale", nn.Linear(2, 3).weight.shape), ("shift", ())))
    assert layer == ParameterLayer((("scale", (3, 2)), ("shift", ())))
    assert layer.numel() == 7


def test_impossible_records_are_refused() -> None:
    with pytest.raises(ValueError, match="groups=3 must divide in_channels=4 and out_channels=6"):
        Conv2dLayer(4, 6, 3, groups=3)
    with pytest.raises(ValueError, match="an integer or a pair"):
        Conv2dLayer(4, 6, (3, 3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="named once"):
        ParameterLayer((("weight", (2,)), ("weight", (3,))))
