"""The oracles against `torch.func`, formulas worked by hand, and each other."""

from importlib.resources import files

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from nngeo_core.testing import (
    MODELS,
    Case,
    block_diagonal,
    fisher,
    fisher_directions,
    fisher_metric,
    kfac_factors,
    kronecker_block,
    output_jacobian,
    plain_gradient,
    relative_error,
)
from nngeo_core.testing.models import conv_net, mlp, position_net, tied_net

TOLERANCE = 1e-12
CONVOLUTIONS = [name for name in MODELS if name.startswith("conv")]
VARIANTS = ["classif_logits", "regression"]


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def sizes_of(model: nn.Module) -> list[int]:
    """Parameters of each layer with parameters of its own."""
    sizes = [sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()]
    return [size for size in sizes if size]


def tanh_slope(x: Tensor) -> Tensor:
    return 1 - x.tanh() ** 2


def outer_mean(rows: Tensor) -> Tensor:
    return rows.T @ rows / len(rows)


def with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1)


def jacobian_by_torch_func(case: Case, names: list[str]) -> Tensor:
    parameters = {name: p.detach() for name, p in case.model.named_parameters() if name in names}
    jacobians = jacrev(lambda p: functional_call(case.model, p, case.inputs))(parameters)
    return torch.cat([jacobians[name].flatten(2) for name in names], dim=2).transpose(0, 1)


# the models


@pytest.mark.parametrize("name", MODELS)
def test_case_is_float64_reproducible_and_leaves_the_global_random_state(name: str) -> None:
    before = torch.get_rng_state()
    case, again = MODELS[name](), MODELS[name]()
    assert torch.equal(torch.get_rng_state(), before)
    outputs = case.model(case.inputs)
    assert outputs.shape == (len(case.inputs), case.n_output)
    assert outputs.dtype == torch.float64
    assert torch.equal(outputs, again.model(again.inputs))


def test_copies_in_another_dtype_keep_ties_and_frozen_parameters() -> None:
    tied, frozen = (MODELS[name]().to(torch.float32).model for name in ("tied-weight", "mlp-frozen-first"))
    assert tied[0].weight is tied[2].weight
    assert tied[0].weight.dtype == torch.float32
    assert [p.requires_grad for p in frozen.parameters()] == [False, False, True, True]


# Jacobian and gradient


@pytest.mark.parametrize("name", MODELS)
def test_jacobian_equals_torch_func(name: str) -> None:
    case = MODELS[name]()
    names = names_of(case.model)
    actual = output_jacobian(case.model, case.inputs, names)
    assert relative_error(actual, jacobian_by_torch_func(case, names)) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_plain_gradient_is_the_contracted_jacobian(name: str) -> None:
    case = MODELS[name]()
    names = names_of(case.model)
    w = torch.randn(case.model(case.inputs).shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.einsum("nc,cnd->d", w, output_jacobian(case.model, case.inputs, names))
    assert relative_error(plain_gradient(case.model, case.inputs, names, w), expected) < TOLERANCE


def test_names_fix_the_flat_order() -> None:
    case = MODELS["mlp"]()
    jacobian = output_jacobian(case.model, case.inputs, ["2.bias", "0.weight"])
    whole = output_jacobian(case.model, case.inputs, names_of(case.model))
    assert torch.equal(jacobian, torch.cat([whole[..., -3:], whole[..., :20]], dim=-1))


def test_function_replaces_the_model_and_may_close_over_it() -> None:
    case = MODELS["mlp"]()
    names = names_of(case.model)
    whole = output_jacobian(case.model, case.inputs, names)
    chosen = output_jacobian(case.model, case.inputs, names, lambda x: 3 * case.model(x)[:, 1:])
    assert relative_error(chosen, 3 * whole[1:]) < TOLERANCE
    assert torch.equal(output_jacobian(case.model, case.inputs, names, case.model), whole)


def test_output_axes_are_flattened_row_major() -> None:
    case = MODELS["mlp"]()
    names = names_of(case.model)
    doubled = output_jacobian(
        case.model, case.inputs, names, lambda x: torch.stack([case.model(x), -case.model(x)], dim=2)
    )
    whole = output_jacobian(case.model, case.inputs, names)
    assert torch.equal(doubled, torch.stack([whole, -whole], dim=1).flatten(0, 1))


def test_an_unknown_name_is_refused() -> None:
    case = MODELS["mlp"]()
    with pytest.raises(ValueError, match=r"names are \['0.wieght'\]; expected some of .*'0.weight'"):
        output_jacobian(case.model, case.inputs, ["0.wieght"])


def test_everything_works_under_no_grad_and_leaves_the_model_as_it_was() -> None:
    case = MODELS["mlp-frozen-first"]()
    before = {name: p.detach().clone() for name, p in case.model.named_parameters()}
    with torch.no_grad():
        fisher(case.model, case.inputs, names_of(case.model), "classif_logits")
        kfac_factors(case.model, case.inputs, "0", "classif_logits")
    with pytest.raises(ValueError, match="variant is 'poison'"):
        kfac_factors(case.model, case.inputs, "0", "poison")
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in case.model.named_parameters())
    assert [p.requires_grad for p in case.model.parameters()] == [False, False, True, True]
    assert not any(module._forward_hooks for module in case.model.modules())


# metric and Fisher matrix


@pytest.mark.parametrize("variant", ["classif_logits", "classif_logsoftmax", "regression"])
def test_directions_are_a_square_root_of_the_metric(variant: str) -> None:
    outputs = 4 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    directions = fisher_directions(outputs, variant)
    product = torch.einsum("kni,knj->nij", directions, directions)
    assert relative_error(product, fisher_metric(outputs, variant)) < TOLERANCE


def test_categorical_metric_is_the_hessian_of_the_cross_entropy() -> None:
    outputs = torch.randn(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hessian = jacrev(jacrev(lambda z: F.cross_entropy(z, torch.tensor(1))))(outputs)
    assert relative_error(fisher_metric(outputs[None], "classif_logits")[0], hessian) < TOLERANCE


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\); the oracles expect \(n, c\)"):
        fisher_metric(torch.zeros(2, 3, 4), "classif_logits")


def test_fisher_of_softmax_regression_by_hand() -> None:
    case = MODELS["linear-one-layer"]()
    inputs, p = case.inputs, case.model(case.inputs).detach().softmax(dim=1)
    metric = torch.stack([row.diag() - torch.outer(row, row) for row in p])
    expected = torch.einsum("nop,ni,nj->oipj", metric, with_one(inputs), with_one(inputs)) / len(inputs)
    weight = expected[:, :-1, :, :-1].reshape(15, 15)
    cross = expected[:, :-1, :, -1].reshape(15, 3)
    expected = torch.cat([torch.cat([weight, cross], 1), torch.cat([cross.T, expected[:, -1, :, -1]], 1)])
    assert relative_error(fisher(case.model, inputs, ["0.weight", "0.bias"], "classif_logits"), expected) < TOLERANCE


def test_fisher_is_the_expected_outer_product_of_log_likelihood_gradients() -> None:
    case = MODELS["conv-groups"]()
    names = names_of(case.model)
    jacobian = output_jacobian(case.model, case.inputs, names, lambda x: case.model(x).log_softmax(dim=1))
    p = case.model(case.inputs).detach().softmax(dim=1)
    expected = torch.einsum("nc,cni,cnj->ij", p, jacobian, jacobian) / len(p)
    assert relative_error(fisher(case.model, case.inputs, names, "classif_logits"), expected) < TOLERANCE


def test_log_softmax_outputs_have_the_fisher_matrix_of_their_logits() -> None:
    case = MODELS["mlp"]()
    names = names_of(case.model)
    logits = fisher(case.model, case.inputs, names, "classif_logits")
    normalized = fisher(
        case.model, case.inputs, names, "classif_logsoftmax", lambda x: case.model(x).log_softmax(dim=1)
    )
    assert relative_error(normalized, logits) < TOLERANCE


# Kronecker factors


@pytest.mark.parametrize("name", ["linear-one-layer", "linear-deep"])
def test_kfac_is_the_block_diagonal_of_fisher_for_linear_nets(name: str) -> None:
    case = MODELS[name]()
    paths = [path for path, module in case.model.named_modules() if isinstance(module, nn.Linear)]
    factors = [kfac_factors(case.model, case.inputs, path, "regression") for path in paths]
    actual = torch.block_diag(*[kronecker_block(a, g, has_bias=True) for a, g in factors])
    exact = fisher(case.model, case.inputs, names_of(case.model), "regression")
    assert relative_error(actual, block_diagonal(exact, sizes_of(case.model))) < TOLERANCE


@pytest.mark.parametrize("groups", [1, 2])
def test_kfac_is_a_block_of_fisher_by_group_for_a_linear_convolution_with_one_position(groups: int) -> None:
    case = conv_net(image=(3, 2), groups=groups)
    model = nn.Sequential(case.model[0], nn.Flatten(), nn.Linear(6, 3).double())
    a, g = kfac_factors(model, case.inputs, "0", "regression")
    assert a.shape[0] == g.shape[0] == groups
    exact = fisher(model, case.inputs, ["0.weight", "0.bias"], "regression")
    channel = torch.cat([torch.arange(6).repeat_interleave(exact.shape[0] // 6 - 1), torch.arange(6)])
    group = channel // (6 // groups)
    expected = exact * (group[:, None] == group[None, :])
    assert relative_error(kronecker_block(a, g, has_bias=True), expected) < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_factors_of_an_mlp_by_hand(variant: str) -> None:
    case = mlp()
    first, _, second = case.model
    before = first(case.inputs).detach()
    directions = fisher_directions(second(before.tanh()).detach(), variant)
    back = (directions @ second.weight.detach()) * tanh_slope(before)
    expected_g = torch.einsum("kno,knp->op", back, back) / len(case.inputs)
    a, g = kfac_factors(case.model, case.inputs, "0", variant)
    assert relative_error(a[0], outer_mean(with_one(case.inputs))) < TOLERANCE
    assert relative_error(g[0], expected_g) < TOLERANCE


@pytest.mark.parametrize("positions", [(4,), (2, 3, 2)], ids=str)
def test_a_sums_over_positions_and_g_averages_over_them(positions: tuple[int, ...]) -> None:
    case = position_net(*positions)
    s = case.inputs[0, ..., 0].numel()
    hidden = case.model[1](case.model[0](case.inputs)).detach().reshape(len(case.inputs), s, -1)
    a, g = kfac_factors(case.model, case.inputs, "2", "regression")
    assert relative_error(a[0], s * outer_mean(with_one(hidden.flatten(0, 1)))) < TOLERANCE
    assert relative_error(g[0], torch.eye(3, dtype=torch.float64) / s**2) < TOLERANCE  # the mean's derivative is 1 / s


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_is_made_of_what_the_convolution_reads(name: str) -> None:
    case = MODELS[name]()
    conv = case.model[0]
    width = conv.weight[0].numel()
    reader = nn.Conv2d(
        conv.in_channels,
        width * conv.groups,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        bias=False,
        padding_mode=conv.padding_mode,
        dtype=torch.float64,
    )
    with torch.no_grad():
        reader.weight.copy_(torch.eye(width).repeat(conv.groups, 1).reshape(reader.weight.shape))
        read = reader(case.inputs).unflatten(1, (conv.groups, width)).flatten(3).permute(0, 3, 1, 2)
    if conv.bias is not None:
        read = with_one(read)
    a, _ = kfac_factors(case.model, case.inputs, "0", "classif_logits")
    assert relative_error(a, torch.einsum("nsqi,nsqj->qij", read, read) / len(read)) < TOLERANCE


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_g_is_made_of_derivatives_at_the_convolution_s_output(name: str, variant: str) -> None:
    case = MODELS[name]()
    conv, rest = case.model[0], case.model[1:]
    output = conv(case.inputs).detach()
    directions = fisher_directions(rest(output.clone()).detach(), variant)
    jacobian = torch.func.vmap(jacrev(lambda z: rest(z.clone()[None])[0]))(output)
    g = torch.einsum("knc,ncohw->knohw", directions, jacobian).flatten(3).unflatten(2, (conv.groups, -1))
    expected = torch.einsum("knqos,knqps->qop", g, g) / len(output) / g.shape[-1]
    assert relative_error(kfac_factors(case.model, case.inputs, "0", variant)[1], expected) < TOLERANCE


def test_a_pointwise_convolution_has_the_factors_of_a_linear_layer_over_positions() -> None:
    case = conv_net(kernel_size=1)
    conv = case.model[0]
    linear = nn.Linear(4, 6).double()
    linear.load_state_dict({"weight": conv.weight.flatten(1), "bias": conv.bias})
    pixels_last, rest = nn.Sequential(linear), case.model[1:]
    inputs = case.inputs.movedim(1, -1)
    factors = kfac_factors(pixels_last, inputs, "0", "classif_logits", lambda x: rest(pixels_last(x).movedim(-1, 1)))
    for actual, expected in zip(factors, kfac_factors(case.model, case.inputs, "0", "classif_logits"), strict=True):
        assert relative_error(actual, expected) < TOLERANCE


def test_two_calls_are_positions_of_one_layer() -> None:
    case = MODELS["called-twice"]()
    layer, head = case.model.repeated, case.model.head
    first = layer(case.inputs).detach()
    second = layer(first.tanh()).detach()
    at_second = head.weight.detach() * tanh_slope(second)[:, None, :]
    at_first = (at_second @ layer.weight.detach()) * tanh_slope(first)[:, None, :]
    expected_a = outer_mean(with_one(case.inputs)) + outer_mean(with_one(first.tanh()))
    expected_g = sum(torch.einsum("nko,nkp->op", g, g) for g in (at_first, at_second)) / len(first) / 2
    a, g = kfac_factors(case.model, case.inputs, "repeated", "regression")
    assert relative_error(a[0], expected_a) < TOLERANCE
    assert relative_error(g[0], expected_g) < TOLERANCE


def test_tied_modules_have_the_factors_of_one_module_called_twice() -> None:
    tied = tied_net(bias=True, tied_bias=True)
    repeated = MODELS["called-twice"]().model
    repeated.load_state_dict(
        {
            "repeated.weight": tied.model[0].weight,
            "repeated.bias": tied.model[0].bias,
            "head.weight": tied.model[4].weight,
            "head.bias": tied.model[4].bias,
        }
    )
    actual = kfac_factors(tied.model, tied.inputs, ["0", "2"], "classif_logits")
    for one, other in zip(actual, kfac_factors(repeated, tied.inputs, "repeated", "classif_logits"), strict=True):
        assert relative_error(one, other) < TOLERANCE


@pytest.mark.parametrize("bias", [False, True])
def test_a_shared_weight_alone_has_no_bias_column(bias: bool) -> None:
    case = tied_net(bias=bias)
    a, g = kfac_factors(case.model, case.inputs, ["0", "2"], "classif_logits")
    assert (a.shape, g.shape) == ((1, 4, 4), (1, 4, 4))


def test_in_place_activation_does_not_change_the_factors() -> None:
    case = MODELS["positions-relu-inplace"]()
    plain = nn.Sequential(case.model[0], nn.ReLU(), *case.model[2:])
    for path in ("0", "2"):
        expected = kfac_factors(plain, case.inputs, path, "classif_logits")
        for one, other in zip(kfac_factors(case.model, case.inputs, path, "classif_logits"), expected, strict=True):
            assert torch.equal(one, other)


class _OverwritesWhatItRead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, inputs: Tensor) -> Tensor:
        read = inputs.clone()
        outputs: Tensor = self.layer(input=read)
        read.zero_()
        return outputs


def test_what_a_layer_read_is_kept_though_overwritten_later() -> None:
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, _ = kfac_factors(_OverwritesWhatItRead(), inputs, "layer", "regression")
    assert relative_error(a[0], outer_mean(with_one(inputs))) < TOLERANCE


def test_layers_without_a_kronecker_rule_or_a_call_are_refused() -> None:
    case = MODELS["mlp"]()
    with pytest.raises(AttributeError):
        kfac_factors(case.model, case.inputs, "9", "regression")
    norm = nn.Sequential(nn.LayerNorm(5).double())
    with pytest.raises(TypeError, match=r"layer is a LayerNorm; the KFAC oracle knows nn.Linear and nn.Conv2d"):
        kfac_factors(norm, case.inputs, "0", "regression")
    with pytest.raises(ValueError, match="the model did not call Linear"):
        kfac_factors(case.model, case.inputs, "0", "regression", lambda x: x)


# the tools


def test_block_diagonal_refuses_sizes_that_do_not_add_up() -> None:
    with pytest.raises(ValueError, match=r"sizes \[1, 1\] add up to 2; the matrix has shape \(3, 3\)"):
        block_diagonal(torch.ones(3, 3), [1, 1])


def test_relative_error_of_vanishing_tensors_and_of_other_shapes() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    assert relative_error(zero, zero) == 0
    assert relative_error(one, zero) == float("inf")
    assert relative_error(1.5 * one, one) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"actual has shape \(2,\), expected has shape \(2, 1\)"):
        relative_error(one, one[:, None])


def test_a_nan_is_never_within_tolerance() -> None:
    assert not relative_error(torch.tensor([float("nan")]), torch.ones(1)) < float("inf")


@pytest.mark.parametrize("module", ["oracles", "models"])
def test_nothing_of_the_library_is_used(module: str) -> None:
    source = files("nngeo_core.testing").joinpath(f"{module}.py").read_text()
    assert "nngeo" not in source.replace("nngeo_core.testing", "")


def test_a_module_registered_twice_keeps_its_parameters() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2)] * 2)
    weight = model[0].weight
    output_jacobian(model, torch.ones(1, 2), ["0.weight"])
    assert model[0].weight is weight
