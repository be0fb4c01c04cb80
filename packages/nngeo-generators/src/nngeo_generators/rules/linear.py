"""Linear layers, with any number of positions between the examples and the features."""

from typing import ClassVar

from torch import Tensor, nn

from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers.layer import Layer, LinearLayer
from nngeo_core.layers.rule import Call, LayerRule
from nngeo_generators.rules.weight_and_bias import weight_layout

__all__ = ["LinearRule"]


class LinearRule(LayerRule):
    """`y = W x + b` on inputs (n, *, in_features): J = sum_s g_s (x) x_s over the positions * (Goodfellow 2015)."""

    name = "linear"
    module_types: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)

    def describe(self, module: nn.Module) -> Layer:
        """Weight (out_features, in_features), then bias."""
        assert isinstance(module, nn.Linear)
        return LinearLayer(module.in_features, module.out_features, module.bias is not None)

    def structure(self, module: nn.Module, names: tuple[str, ...]) -> Structure:
        """Inputs times output gradients."""
        return Structure(self._layout(module, names))

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor, names: tuple[str, ...]
    ) -> KroneckerJacobian:
        """One group; `a` is the input, `g` the output gradient, each with its positions in one axis."""
        x, g = call.tensor("input", 0), output_gradients
        if x.ndim < 2:
            raise UnsupportedLayerError(
                f"'{call.path}' was called on one input of shape {tuple(x.shape)}; expected (n, *, in_features)"
            )
        a = x.flatten(1, -2).unsqueeze(2) if x.ndim > 2 else x[:, None, None]
        g = g.flatten(2, -2).unsqueeze(3) if g.ndim > 3 else g[:, :, None, None]
        a = a if "weight" in names else a[..., :0]
        return KroneckerJacobian(a, g, self._layout(module, names))

    def _layout(self, module: nn.Module, names: tuple[str, ...]) -> KroneckerLayout:
        """Where weight and bias lie in the flat parameters."""
        return weight_layout(module, names)
