"""KroneckerLayout: how flat parameters read as matrices, against the shapes in which modules store them."""

import pytest
import torch
from torch import nn

from nngeo_core.jacobians.layout import KroneckerFactors, KroneckerLayout, matrix_layout

LAYOUTS = {
    "linear": KroneckerLayout(1, 3, 4, True),
    "linear-no-bias": KroneckerLayout(1, 3, 4, False),
    "groups": KroneckerLayout(2, 3, 4, True),
    "in-by-out": KroneckerLayout(1, 3, 4, True, leading_inputs=4),
    "transposed-convolution": KroneckerLayout(2, 3, 6, True, leading_inputs=2),
    "bias-only": KroneckerLayout(2, 3, 0, True),
    "one": KroneckerLayout(1, 1, 1, False),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@every_layout
@pytest.mark.parametrize("leading", [(), (2,), (2, 5)], ids=str)
def test_packing_inverts_unpacking(layout: KroneckerLayout, leading: tuple[int, ...]) -> None:
    flat = torch.randn(*leading, layout.numel)
    weight, bias = layout.unpack(flat)
    assert weight.shape == (*leading, layout.groups, layout.outputs, layout.inputs)
    assert (bias is not None) == layout.has_bias
    assert bias is None or bias.shape == (*leading, layout.groups, layout.outputs)
    assert layout.pack(weight, bias).equal(flat)


@every_layout
@pytest.mark.parametrize("leading", [(), (2, 5)], ids=str)
def test_the_matrix_has_the_bias_as_its_last_column(layout: KroneckerLayout, leading: tuple[int, ...]) -> None:
    flat = torch.randn(*leading, layout.numel)
    matrix = layout.to_matrix(flat)
    assert matrix.shape == (*leading, layout.groups, layout.outputs, layout.inputs + layout.has_bias)
    assert layout.from_matrix(matrix).equal(flat)
    bias = layout.unpack(flat)[1]
    assert bias is None or matrix[..., -1].equal(bias)


def test_numbers_of_parameters() -> None:
    layout = LAYOUTS["transposed-convolution"]
    assert (layout.weight_numel, layout.numel) == (36, 42)


def test_a_linear_layer_stores_out_by_in() -> None:
    module = nn.Linear(4, 3)
    flat = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    weight, bias = LAYOUTS["linear"].unpack(flat)
    assert weight[0].equal(module.weight) and bias is not None and bias[0].equal(module.bias)


def test_a_grouped_convolution_has_one_matrix_for_each_group() -> None:
    module = nn.Conv2d(4, 6, (1, 2), groups=2)
    weight, bias = LAYOUTS["groups"].unpack(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert weight.equal(module.weight.view(2, 3, 4)) and bias is not None and bias.equal(module.bias.view(2, 3))


def test_an_embedding_stores_in_by_out() -> None:
    module = nn.Embedding(4, 3)
    weight, bias = KroneckerLayout(1, 3, 4, False, leading_inputs=4).unpack(module.weight.detach().flatten())
    assert weight[0].equal(module.weight.T) and bias is None


def test_a_transposed_convolution_stores_channels_of_the_input_first() -> None:
    """Weight (in_channels, out_channels / groups, kernel): A is the group's input channel, then the kernel's pixel."""
    module = nn.ConvTranspose2d(4, 6, (1, 3), groups=2)
    weight, _ = LAYOUTS["transposed-convolution"].unpack(torch.cat([p.detach().flatten() for p in module.parameters()]))
    for group in range(2):
        for channel in range(2):
            for pixel in range(3):
                expected = module.weight[2 * group + channel, :, 0, pixel]
                assert weight[group, :, 3 * channel + pixel].equal(expected)


MODULES = {
    "linear": (nn.Linear(4, 3), 1, False),
    "groups": (nn.Conv2d(4, 6, (1, 2), groups=2), 2, False),
    "in-by-out": (nn.ParameterDict({"weight": torch.zeros(4, 3), "bias": torch.zeros(3)}), 1, True),
    "transposed-convolution": (nn.ConvTranspose2d(4, 6, (1, 3), groups=2), 2, True),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_layout_of_a_module_follows_from_its_shapes(name: str) -> None:
    module, groups, transposed = MODULES[name]
    shapes = {local: tuple(parameter.shape) for local, parameter in module.named_parameters()}
    found = matrix_layout({local: shapes[local] for local in ("weight", "bias")}, groups, transposed)
    assert (found, found.input_width) == (LAYOUTS[name], LAYOUTS[name].inputs + 1)
    without = matrix_layout({"weight": shapes["weight"]}, groups, transposed)
    assert (without.numel, without.input_width) == (module.weight.numel(), LAYOUTS[name].inputs)
    bias = matrix_layout({"bias": shapes["bias"]}, groups, transposed)
    assert bias == KroneckerLayout(groups, LAYOUTS[name].outputs, 0, True) and bias.input_width == 1


def test_factors_are_printed_by_their_shapes() -> None:
    factors = KroneckerFactors(torch.ones(2, 5, 5), torch.ones(2, 3, 3), LAYOUTS["groups"])
    assert repr(factors) == "KroneckerFactors(inputs (2, 5, 5), outputs (2, 3, 3), torch.float32, cpu)"
