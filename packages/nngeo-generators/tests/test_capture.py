"""What a forward pass shows of each layer's calls: views, roots, repeated and missing calls, axes, changed inputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import KroneckerJacobian, LayerCollection, LinearLayer, UnsupportedLayerError
from nngeo_core.testing import output_jacobian, relative_error
from nngeo_generators import HooksGenerator

Build = Callable[..., nn.Module]
Hooks = Callable[..., HooksGenerator]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def assert_exact(generator: HooksGenerator, x: Tensor, oracle_input: Tensor | None = None) -> None:
    """All layers side by side equal plain autograd, example by example."""
    layers, model = generator.layer_collection, generator.model
    dense = generator.jacobian(x).to_dense({name: layer.numel() for name, layer in layers.items()})
    names = [name for name, _ in layers.named_parameters(model)]
    expected = output_jacobian(model, x if oracle_input is None else oracle_input, names)
    assert relative_error(dense, expected) < 1e-12


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3), (4, 4, 3), (4, 2, 2, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_an_in_place_activation_after_a_view(shape: tuple[int, ...], bias: bool, build: Build, hooks: Hooks) -> None:
    """A linear layer with a bias returns a view for more than two axes."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.b(net.a(x).relu_()).flatten(1, -2).sum(1) if x.ndim > 2 else net.b(net.a(x).relu_())

    assert_exact(hooks(build(forward, a=nn.Linear(3, 4, bias), b=nn.Linear(4, 2, bias))), draw(*shape))


def test_in_place_changes_of_part_of_an_output(build: Build, hooks: Hooks) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        h[:, :2].mul_(3)
        h += 1
        return net.b(h.tanh())

    assert_exact(hooks(build(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2))), draw(4, 3))


def test_a_transposed_output_and_an_in_place_activation(build: Build, hooks: Hooks) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.b(net.a(x).transpose(1, 2).relu_()).flatten(1)

    assert_exact(hooks(build(forward, a=nn.Linear(3, 4), b=nn.Linear(5, 2))), draw(4, 5, 3))


def test_a_hook_that_writes_to_the_output_gradient(hooks: Hooks) -> None:
    """Which must not share memory between examples."""
    layer = nn.Linear(3, 2).double()

    def masked(x: Tensor) -> Tensor:
        outputs: Tensor = layer(x) * 1
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: gradient.masked_fill_(outputs < 0, 0))
        return outputs

    found = hooks(layer, function=masked).jacobian(draw(4, 3)).to_dense({"": 8})
    expected = output_jacobian(nn.Sequential(layer, nn.ReLU()), draw(4, 3), ["0.weight", "0.bias"])
    assert relative_error(found, expected) < 1e-12


def test_an_output_that_another_one_is_computed_from(build: Build, hooks: Hooks) -> None:
    """Its own edge would receive what belongs to the other; a cell of an LSTM is one such module."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([0.5, 2.0, 3.0]))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            cell = self.scale * x
            hidden = cell.tanh()
            return hidden, cell, hidden

    def forward(net: Any, x: Tensor) -> Tensor:
        hidden, cell, again = net.a(x)
        return net.b(hidden + cell.square() + again.exp())

    generator = hooks(build(forward, a=Pair(), b=nn.Linear(3, 2)))
    assert_exact(generator, draw(4, 3))
    assert {use.path for use in generator._known.plan} == {"a", "b"}  # not the model around them


@pytest.mark.parametrize("frozen", [("a",), ("b",), ("a", "b")], ids=str)
def test_frozen_layers_are_differentiated_and_stay_frozen(frozen: tuple[str, ...], build: Build, hooks: Hooks) -> None:
    model = build(lambda net, x: net.b(net.a(x).tanh()), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert_exact(hooks(model), draw(4, 3))
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def test_integer_inputs_need_no_gradient_root(build: Build, hooks: Hooks) -> None:
    model = build(lambda net, x: net.a(nn.functional.one_hot(x, 3).double()), a=nn.Linear(3, 2)).requires_grad_(False)
    assert_exact(hooks(model), torch.tensor([0, 2, 1, 2]))


def test_a_module_under_its_own_no_grad_has_derivative_zero(build: Build, hooks: Hooks) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = net.a(x)
        return net.b(h)

    model = build(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    assert set(hooks(model).jacobian(draw(4, 3)).layers) == {"b"}
    assert_exact(hooks(model), draw(4, 3))


def test_detached_outputs_have_derivative_zero(build: Build, hooks: Hooks) -> None:
    model = build(lambda net, x: net.b(net.a(x).detach()), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    found = hooks(model).jacobian(draw(4, 3)).layers
    assert found["a"].squared_norm() == 0 and found["b"].squared_norm() > 0
    assert_exact(hooks(model), draw(4, 3))


@pytest.mark.parametrize(
    "forward", [lambda net, x: net.a(x).detach(), lambda net, x: 2 * x], ids=["detached", "uncalled"]
)
def test_outputs_that_depend_on_no_parameter_are_refused(
    forward: Callable[..., Tensor], build: Build, hooks: Hooks
) -> None:
    """A `function` that calls another model, or this one without a graph, would give F = 0."""
    with pytest.raises(
        UnsupportedLayerError, match="the outputs do not depend on any parameter of the layer collection"
    ):
        hooks(build(forward, a=nn.Linear(3, 3))).jacobian(draw(4, 3))


@pytest.mark.parametrize(
    "forward", [lambda net, x: (net.a(x), net.b(x))[1], lambda net, x: net.a(x).detach() + net.b(x)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_zero_derivatives_have_the_dtype_of_the_others(
    forward: Callable[..., Tensor], dtype: torch.dtype, build: Build, hooks: Hooks
) -> None:
    model = build(forward, a=nn.Linear(3, 2), b=nn.Linear(3, 2)).to(dtype)
    found = hooks(model).jacobian(draw(4, 3).to(dtype)).layers
    assert {name: layer.sum_of_squares().dtype for name, layer in found.items()} == {
        "a": torch.float32,
        "b": torch.float32,
    }
    assert found["a"].squared_norm() == 0 and found["b"].squared_norm() > 0


def test_a_layer_that_is_not_called_is_absent(build: Build, hooks: Hooks) -> None:
    model = build(lambda net, x: net.b(x), a=nn.Linear(3, 2), b=nn.Linear(3, 2))
    assert set(hooks(model).jacobian(draw(4, 3)).layers) == {"b"}
    assert_exact(hooks(model), draw(4, 3))


def test_calls_of_one_module_are_positions(build: Build, hooks: Hooks) -> None:
    model = build(lambda net, x: net.a(net.a(net.a(x).tanh()).tanh()), a=nn.Linear(3, 3))
    found = hooks(model).jacobian(draw(4, 3)).layers["a"]
    assert isinstance(found, KroneckerJacobian) and found.positions == 3
    assert_exact(hooks(model), draw(4, 3))


def test_one_module_in_two_places(hooks: Hooks) -> None:
    shared = nn.Linear(3, 3).double()
    weight, generator = shared.weight, hooks(nn.Sequential(shared, nn.Tanh(), shared))
    assert_exact(generator, draw(4, 3))
    assert shared.weight is weight and isinstance(weight, nn.Parameter)


def test_a_tied_weight_with_an_own_bias_each(hooks: Hooks) -> None:
    first, second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    second.weight = first.weight
    generator = hooks(nn.Sequential(first, nn.Tanh(), second))
    assert list(generator.jacobian(draw(4, 3)).layers) == ["0.weight", "0.bias", "2"]
    assert_exact(generator, draw(4, 3))


def test_the_bias_alone_of_a_tied_pair(hooks: Hooks) -> None:
    """One bias in both modules, two weights: a layer of which each call shows a part."""
    first, second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    second.bias = first.bias
    assert_exact(hooks(nn.Sequential(first, nn.Tanh(), second)), draw(4, 3))


def test_some_layers_only(hooks: Hooks) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    layers = LayerCollection()
    layers.add_layer_from_model(model, model[4])
    layers.add_layer_from_model(model, model[0])
    generator = hooks(model, layer_collection=layers)
    assert list(layers) == ["4", "0"] and set(generator.jacobian(draw(4, 3)).layers) == {"0", "4"}
    assert_exact(generator, draw(4, 3))


def test_a_module_that_uses_a_part_of_a_layer_adds_that_part(hooks: Hooks) -> None:
    """The second module uses the layer's weight and another bias."""
    first, second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    second.weight = first.weight
    layers = LayerCollection()
    layers.add_layer("first", LinearLayer(3, 3), ["0.weight", "0.bias"])
    assert_exact(hooks(nn.Sequential(first, nn.Tanh(), second), layer_collection=layers), draw(4, 3))


def test_the_users_hooks_are_still_called_in_their_place(build: Build, hooks: Hooks) -> None:
    """Ours sees the module's own output, theirs what ours returned, and what they return goes on."""
    model, seen = build(lambda net, x: net.a(x), a=nn.Linear(3, 2)), []
    model.a.register_forward_pre_hook(lambda module, args: (seen.append("pre"), (2 * args[0],))[1])
    model.a.register_forward_hook(lambda module, args, output: (seen.append("post"), 3 * output)[1])
    before = dict(model.a._forward_hooks), dict(model.a._forward_pre_hooks)
    x = draw(4, 3)
    found = hooks(model, check="off").jacobian(x).layers["a"]
    expected = torch.zeros(2, 4, 2, 3, dtype=torch.float64)
    expected[0, :, 0] = expected[1, :, 1] = 6 * x
    assert relative_error(found.to_dense()[:, :, :6], expected.flatten(2)) < 1e-14
    assert seen == ["pre", "post"]
    assert (dict(model.a._forward_hooks), dict(model.a._forward_pre_hooks)) == before


def test_arguments_by_keyword(build: Build, hooks: Hooks) -> None:
    assert_exact(hooks(build(lambda net, x: net.a(input=x), a=nn.Linear(3, 2))), draw(4, 3))


@pytest.mark.parametrize("check", ["first-batch", "off"])
def test_an_input_changed_after_it_was_read_is_refused(check: str, build: Build, hooks: Hooks) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        y = net.b(h)
        h.mul_(2)
        return y + h

    with pytest.raises(UnsupportedLayerError) as error:
        hooks(build(forward, a=nn.Linear(3, 2), b=nn.Linear(2, 2)), check=check).jacobian(draw(4, 3))
    assert str(error.value) == (
        "layer 'b': the input of 'b' was changed in place after the layer had read it, so its derivative is lost; "
        "use the out-of-place form of that operation. Mend the model, or leave this layer out of the layer collection"
    )


def test_an_input_changed_through_a_view_is_refused(build: Build, hooks: Hooks) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = x.clone()
        y = net.a(h)
        h[:, 0].zero_()
        return y + h.sum(1, keepdim=True)

    with pytest.raises(UnsupportedLayerError, match="the input of 'a' was changed in place"):
        hooks(build(forward, a=nn.Linear(3, 2))).jacobian(draw(4, 3))


def sequence_first(net: Any, x: Tensor) -> Tensor:
    """(T, n, D) inside the model."""
    return net.a(x.transpose(0, 1)).transpose(0, 1).mean(1)


@pytest.mark.parametrize("positions", [1, 4, 5])
def test_examples_on_another_axis_are_found(positions: int, build: Build, hooks: Hooks) -> None:
    """Also where T = n."""
    assert_exact(hooks(build(sequence_first, a=nn.Linear(3, 2))), draw(4, positions, 3))


def test_examples_on_another_axis_are_refused_without_the_check(build: Build, hooks: Hooks) -> None:
    with pytest.raises(UnsupportedLayerError) as error:
        hooks(build(sequence_first, a=nn.Linear(3, 2)), check="off").jacobian(draw(4, 5, 3))
    assert str(error.value) == (
        "layer 'a': 'a' (Linear) returned shape (5, 4, 2) for 4 examples; the first dimension inside the model must be that "
        "of the examples. Mend the model, or leave this layer out of the layer collection"
    )


def test_positions_folded_into_the_examples_are_found(build: Build, hooks: Hooks) -> None:
    model = build(lambda net, x: net.a(x.flatten(0, 1)).unflatten(0, (-1, 5)).mean(1), a=nn.Linear(3, 2))
    assert_exact(hooks(model), draw(4, 5, 3))


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(3, 1), (1, 3)), (nn.Conv2d(1, 1, 2), (1, 1, 3, 3))], ids=["linear", "conv"]
)
def test_inputs_without_an_example_axis(layer: nn.Module, shape: tuple[int, ...], build: Build, hooks: Hooks) -> None:
    """Even where the axis that stands first happens to be as long as the batch."""
    assert_exact(hooks(build(lambda net, x: net.a(x[0]).view(1, -1), a=layer)), draw(*shape))


def test_examples_one_by_one(build: Build, hooks: Hooks) -> None:
    assert_exact(hooks(build(lambda net, x: torch.stack([net.a(row) for row in x]), a=nn.Linear(3, 2))), draw(4, 3))


@pytest.mark.parametrize(
    "use", [lambda p, x: p.view(5, 3) + x, lambda p, x: p.repeat(len(x), 1, 1) + x, lambda p, x: p[0] + x]
)
def test_what_examples_share_is_not_copied_where_the_model_cannot_take_copies(
    use: Callable[[Tensor, Tensor], Tensor], build: Build, hooks: Hooks
) -> None:
    """A position embedding of shape (1, T, D) is given to the model once for each example, if the model goes on as before."""
    model = build(
        lambda net, x: net.b(use(net.p(torch.arange(5)[None]), x).tanh()).mean(1),
        p=nn.Embedding(5, 3),
        b=nn.Linear(3, 2),
    )
    assert_exact(hooks(model), draw(4, 5, 3))


class Once(torch.autograd.Function):
    """tanh, whose backward pass works on one direction at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(gradient.detach().numpy() * (1 - x.detach().tanh().numpy() ** 2))


def test_a_backward_pass_that_takes_one_direction_at_a_time(build: Build, hooks: Hooks) -> None:
    model = build(lambda net, x: net.b(Once.apply(net.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    assert_exact(hooks(model), draw(4, 3))


@pytest.mark.parametrize("enabled", [True, False])
def test_the_fast_path_of_attention_is_off_inside_and_as_before_after_an_exception(
    enabled: bool, build: Build, hooks: Hooks
) -> None:
    """It would run an encoder layer in evaluation mode without calling its parts, so that no hook fires."""

    def forward(net: Any, x: Tensor) -> Tensor:
        seen.append(torch.backends.mha.get_fastpath_enabled())
        if len(seen) > 9:
            raise KeyboardInterrupt
        return net.a(x).mean(1)

    seen: list[bool] = []
    generator = hooks(build(forward, a=nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)).eval(), check="off")
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        assert_exact(generator, draw(4, 5, 4))
        inside = seen[:1]
        with pytest.raises(KeyboardInterrupt):
            for _ in range(9):
                generator.jacobian(draw(4, 5, 4))
        assert (inside, torch.backends.mha.get_fastpath_enabled()) == ([False], enabled)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
