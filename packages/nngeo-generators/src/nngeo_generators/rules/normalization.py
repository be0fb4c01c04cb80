"""What the rules of all normalisations share."""

from abc import abstractmethod

from torch import Tensor, nn

from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.jacobians.scale_shift import ScaleShiftJacobian
from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers.layer import Layer
from nngeo_core.layers.rule import Call, LayerRule
from nngeo_generators.rules.weight_and_bias import weight_and_bias

__all__ = ["NormalizationRule"]


class NormalizationRule(LayerRule):
    """`y = weight * x_hat + bias`: J = (sum_s g_s * x_hat_s, sum_s g_s) over the positions s that share a channel.

    A subclass says how the normalised input x_hat follows from a call, and where the channels are: after the examples,
    unless it overrides `_by_position`.
    """

    def describe(self, module: nn.Module) -> Layer:
        """Weight, then bias, as far as the module has them."""
        return weight_and_bias(module)

    def structure(self, module: nn.Module, names: tuple[str, ...]) -> Structure:
        """No sum of Kronecker products."""
        return Structure()

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor, names: tuple[str, ...]
    ) -> LayerJacobian:
        """The normalised input is computed once, and not at all for the bias alone."""
        shape, axes = tuple(output_gradients.shape[1:]), self._example_axes(module)
        if len(shape) <= axes:
            raise UnsupportedLayerError(
                f"'{call.path}' was called on one example of shape {shape}; expected the examples first, then at least "
                f"{axes} more {'axis' if axes == 1 else 'axes'}"
            )
        g = self._by_position(module, output_gradients)
        if "weight" not in names:
            return DenseJacobian(g.sum(2))
        x_hat = call.once("x_hat", lambda: self._normalized(module, call)).to(g.dtype)
        return ScaleShiftJacobian(self._by_position(module, x_hat.unsqueeze(0))[0], g, "bias" in names)

    @abstractmethod
    def _normalized(self, module: nn.Module, call: Call) -> Tensor:
        """x_hat, of the shape of the output."""

    def _example_axes(self, module: nn.Module) -> int:
        """How many axes one example has at least."""
        return 1

    def _by_position(self, module: nn.Module, values: Tensor) -> Tensor:
        """Bring (c, n, *shape of one example) to (c, n, s, C)."""
        return values.unsqueeze(-1).flatten(3).transpose(2, 3)
