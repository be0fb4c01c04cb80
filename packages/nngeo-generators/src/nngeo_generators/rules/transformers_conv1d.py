"""The linear layer of GPT-2, which stores its weight transposed."""

from torch import nn

from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.layers.layer import Layer
from nngeo_generators.rules.linear import LinearRule
from nngeo_generators.rules.weight_and_bias import weight_and_bias, weight_layout

__all__ = ["TransformersConv1DRule"]


class TransformersConv1DRule(LinearRule):
    """`y = x W + b` on inputs (n, *, in): J = sum_s x_s (x) g_s over the positions *, in the order of W (in, out)."""

    name = "transformers-conv1d"
    module_types = ()

    def recognizes(self, module: nn.Module) -> bool:
        """Whether the module is built like transformers' `Conv1D`."""
        if type(module).__name__ != "Conv1D":
            return False
        shapes = [tuple(parameter.shape) for parameter in module.parameters()]
        return (
            [name for name, _ in module.named_parameters()] == ["weight", "bias"]
            and len(shapes[0]) == 2
            and shapes[0][1:] == shapes[1] == (getattr(module, "nf", None),)
            and "forward" not in vars(module)
        )

    def describe(self, module: nn.Module) -> Layer:
        """Weight (in, out), then bias."""
        return weight_and_bias(module)

    def _layout(self, module: nn.Module, names: tuple[str, ...]) -> KroneckerLayout:
        return weight_layout(module, names, transposed=True)
