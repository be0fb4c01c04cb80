"""ChebyshevLinear, the layer of a Chebyshev Kolmogorov-Arnold network, and its rule for nngeo."""

import math

import torch
from torch import Tensor, nn

from nngeo_core import (
    Call,
    KroneckerJacobian,
    KroneckerLayout,
    LayerRule,
    ParameterLayer,
    Structure,
    UnsupportedLayerError,
    hookimpl,
)

__all__ = ["ChebyshevLinear", "ChebyshevRule", "nngeo_layer_rules"]

nngeo_api_version = 1


class ChebyshevLinear(nn.Module):
    """y_o = b_o + sum_i sum_{k=1..K} W[o, i, k] T_k(tanh x_i): a learned polynomial for each pair of output and input.

    T_k is the Chebyshev polynomial of degree k. Kolmogorov-Arnold networks: Liu et al. (2024); with Chebyshev polynomials:
    Sidharth et al. (2024).

    Args:
        in_features: Number of inputs, the last axis of x; any axes may come between the examples and it.
        out_features: Number of outputs.
        degree: K, 1 or more.
        bias: Whether there is a b.
    """

    def __init__(self, in_features: int, out_features: int, degree: int, bias: bool = True) -> None:
        super().__init__()
        if degree < 1:
            raise ValueError(f"degree is 1 or more, got {degree}; the constant is the bias")
        scale = (in_features * degree) ** -0.5
        self.weight = nn.Parameter(scale * torch.randn(out_features, in_features, degree))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def features(self, x: Tensor) -> Tensor:
        """T_1, ..., T_K of tanh x, shape (*x.shape, K), by T_{k+1} = 2 t T_k - T_{k-1}."""
        t = x.tanh()
        before, found = torch.ones_like(t), [t]
        while len(found) < self.weight.shape[2]:
            following = 2 * t * found[-1] - before
            before = found[-1]
            found.append(following)
        return torch.stack(found, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (*, out_features) for inputs (*, in_features)."""
        return nn.functional.linear(self.features(x).flatten(-2), self.weight.flatten(1), self.bias)


class ChebyshevRule(LayerRule):
    """Linear in its parameters, so J = sum_s g_s (x) T(tanh x_s) over the positions s, a matrix of out x (in K) weights."""

    name = "chebyshev"
    module_types = (ChebyshevLinear,)

    def describe(self, module: nn.Module) -> ParameterLayer:
        """Weight (out, in, K), then bias."""
        return ParameterLayer(tuple((name, tuple(part.shape)) for name, part in module.named_parameters()))

    def structure(self, module: nn.Module, names: tuple[str, ...]) -> Structure:
        """A matrix of weights, in one group."""
        out_features, in_features, degree = module.get_parameter("weight").shape
        inputs = in_features * degree if "weight" in names else 0
        return Structure(KroneckerLayout(groups=1, outputs=out_features, inputs=inputs, has_bias="bias" in names))

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor, names: tuple[str, ...]
    ) -> KroneckerJacobian:
        """The inputs of the matrix are the features, computed once however many slices of directions come."""
        assert isinstance(module, ChebyshevLinear)
        x = call.tensor("x", 0)
        if x.ndim < 2:
            raise UnsupportedLayerError(
                f"'{call.path}' was called on shape {tuple(x.shape)}; expected (n, *, in_features)"
            )
        n, s = len(x), math.prod(x.shape[1:-1])
        layout = self.structure(module, names).layout
        assert layout is not None
        g = output_gradients.reshape(len(output_gradients), n, s, 1, layout.outputs)
        a = call.once("features", lambda: module.features(x).reshape(n, s, 1, x.shape[-1] * module.weight.shape[2]))
        return KroneckerJacobian(a[..., : layout.inputs], g, layout)


@hookimpl
def nngeo_layer_rules() -> list[LayerRule]:
    """The rule of `ChebyshevLinear`."""
    return [ChebyshevRule()]
