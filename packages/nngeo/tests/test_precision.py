"""Half precision and autocast: sums in float32, whatever the model computes in; float64 stays float64."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo import FIM, EmpiricalFIM, GaussianLikelihood, Hessian, PVector, random_pvector, verify
from nngeo_core.testing import fisher, relative_error


class Bare(nn.Module):
    """A parameter of the model's own beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4))
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head((x @ self.weight).tanh())
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cells(x.unflatten(1, (2, 4)))[0][:, -1])
        return out


class Inside(nn.Module):
    """Autocast in the model's own forward; the outputs come back in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = self.model(x)
        return outputs.float()  # type: ignore[no-any-return]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 4))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
    )


def transformer() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 4)),
        nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


BUILDERS = {"mlp": mlp, "convolution": convolution, "transformer": transformer, "recurrent": Recurrent, "bare": Bare}
EPS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
X = torch.randn(12, 8, generator=torch.Generator().manual_seed(3))


def built(name: str, dtype: torch.dtype, where: str) -> tuple[nn.Module, Tensor, AbstractContextManager[None]]:
    """A model, its inputs, the context to run it in."""
    torch.manual_seed(0)
    model = BUILDERS[name]()
    autocast: Any = torch.autocast("cpu", torch.bfloat16) if where == "caller" else nullcontext()
    return (Inside(model) if where == "inside" else model.to(dtype)), X.to(dtype), autocast


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def oracle(name: str) -> Tensor:
    model, x, _ = built(name, torch.float64, "plain")
    return fisher(model, x, names(model), "classif_logits")


def in_order_of_parameters(F: Any, model: nn.Module) -> Tensor:
    slices: dict[str, slice] = {}
    start = 0
    for path, parameter in F.layer_collection.named_parameters(model):
        slices[path] = slice(start, start := start + parameter.numel())
    order = torch.cat([torch.arange(slices[path].start, slices[path].stop) for path in names(model)])
    dense: Tensor = F.get_dense_tensor()[order][:, order]
    return dense


KINDS = [
    (torch.float64, "plain"), (torch.float32, "plain"), (torch.float16, "plain"), (torch.bfloat16, "plain"),
    (torch.float32, "caller"), (torch.float32, "inside"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "where"), KINDS, ids=lambda part: str(part).removeprefix("torch."))
@pytest.mark.parametrize("name", list(BUILDERS))
def test_sums_and_products_are_in_float32_at_least(name: str, dtype: torch.dtype, where: str) -> None:
    """Within the rounding of the dtype that the model computes in; and sums agree among themselves to that of their own."""
    model, x, context = built(name, dtype, where)
    try:
        with context:
            model(x)
    except RuntimeError as error:  # a processor without AVX-512 has no LSTM in bfloat16
        pytest.skip(f"torch itself cannot run this model here: {error}")
    kept, computed = torch.promote_types(dtype, torch.float32), dtype if where == "plain" else torch.bfloat16
    v: PVector | None = None
    with context:
        dense, diag = FIM(model, x, ["dense", "diag"])
        v = random_pvector(dense.layer_collection, dtype=kept, generator=torch.Generator().manual_seed(0))
        product = dense.generator.product(v, x).get_flat_representation()
        mv, form = dense.mv(v).get_flat_representation(), dense.vTMv(v)
    assert {dense.dtype, diag.dtype, product.dtype, mv.dtype} == {kept}
    assert relative_error(in_order_of_parameters(dense, model).double(), oracle(name)) <= EPS[computed]
    assert relative_error(diag.get_diag(), dense.get_diag()) <= EPS[kept]
    assert relative_error(product, mv) <= 2 * EPS[computed]
    exact = dense.get_dense_tensor().double() @ v.get_flat_representation().double()
    assert relative_error(mv.double(), exact) <= EPS[kept]
    assert relative_error(form.double(), v.get_flat_representation().double() @ exact) <= EPS[kept]


@pytest.mark.parametrize(("dtype", "where"), KINDS[2:], ids=lambda part: str(part).removeprefix("torch."))
def test_kronecker_factors_are_not_sums_in_half_precision(dtype: torch.dtype, where: str) -> None:
    """1,000 positive terms: a sum in bfloat16 would stop growing at some 256 of them."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4)), torch.rand(1000, 3).bfloat16().float()
    wrapped = Inside(model) if where == "inside" else model.to(dtype)
    with torch.autocast("cpu", torch.bfloat16) if where == "caller" else nullcontext():
        kfac = FIM(wrapped, x.to(dtype), "kfac")
    (factors,) = kfac.data.values()
    inputs = torch.cat((x, torch.ones(1000, 1)), 1).double()
    assert relative_error(factors.inputs[0].double(), inputs.T @ inputs / 1000) <= 1e-5


def test_a_likelihood_is_not_evaluated_under_the_callers_autocast() -> None:
    covariance = torch.tensor([[2.0, 0.9, 0.3], [0.9, 1.0, 0.1], [0.3, 0.1, 0.7]])
    model, x = nn.Linear(3, 3), torch.eye(3)

    def precise(x: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            return model(x)

    with torch.autocast("cpu", torch.bfloat16):
        F = FIM(model, x, "dense", variant=GaussianLikelihood(covariance), function=precise)
    exact = FIM(copy.deepcopy(model).double(), x.double(), "dense", variant=GaussianLikelihood(covariance))
    assert relative_error(F.get_dense_tensor().double(), exact.get_dense_tensor()) <= 1e-6


def test_the_callers_autocast_is_as_before() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        FIM(mlp(), X, "dense")
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        with pytest.raises(ValueError, match="n_output=5"):
            FIM(mlp(), X, "dense", n_output=5)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_a_forward_pass_of_the_callers_before_leaves_no_cast_weights_behind() -> None:
    """Under one autocast, torch keeps the cast of a weight, made perhaps without a graph."""
    torch.manual_seed(0)
    model = mlp()
    with torch.autocast("cpu", torch.bfloat16):
        expected = FIM(model, X, "diag").get_diag()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(X)
        found = FIM(model, X, "diag").get_diag()
    assert relative_error(found, expected) <= 1e-6


def test_losses_of_half_precision_outputs_are_differentiated_in_float32() -> None:
    torch.manual_seed(0)
    model, y = mlp().bfloat16(), torch.randint(0, 4, (12,), generator=torch.Generator().manual_seed(1))
    seen: list[torch.dtype] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.dtype)
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    found = EmpiricalFIM(model, (X.bfloat16(), y), "diag", loss=loss)
    assert set(seen) == {torch.float32} and found.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("representation", ["implicit", "dense", "blockdiag"])
def test_a_hessian_in_half_precision_is_that_of_its_numbers(representation: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = mlp().to(dtype), X.to(dtype)
    y = torch.randint(0, 4, (12,), generator=torch.Generator().manual_seed(1))
    found = Hessian(model, (x, y), representation, variant="classif_logits")
    exact = Hessian(copy.deepcopy(model).double(), (x.double(), y), representation, variant="classif_logits")
    v = torch.randn(1, found.size(0), generator=torch.Generator().manual_seed(2)).to(dtype)
    assert found.dtype == torch.float32
    assert relative_error(found.mv(v.float()).double(), exact.mv(v.double())) <= 2 * EPS[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", ["mlp", "convolution"])
def test_verify_allows_for_the_rounding_of_half_precision(name: str, dtype: torch.dtype) -> None:
    model, x, _ = built(name, dtype, "plain")
    errors = verify(model, x).errors
    assert {"dense", "diag", "kfac"} <= errors.keys()
    assert max(errors.values()) <= EPS[dtype]


class WrongForwardMode(torch.autograd.Function):
    """The identity, with a forward-mode derivative three times too large."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return 3 * tangents[0]


@pytest.mark.parametrize("dtype", list(EPS), ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_a_wrong_forward_mode_derivative_is_seen_where_squares_overflow(dtype: torch.dtype) -> None:
    """In float16, a norm of 256 has a square that is none: products then go without forward mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 10)).to(dtype)
    x = torch.randn(8, 30).to(dtype)
    F = FIM(model, x, "implicit", variant="regression", function=lambda x: WrongForwardMode.apply(model(x)))
    exact = FIM(copy.deepcopy(model).double(), x.double(), "dense", variant="regression")
    v = torch.randn(1, F.size(0)).to(dtype)
    assert relative_error(F.mv(v.to(F.dtype)).double(), exact.mv(v.double())) <= 2 * EPS[dtype]
