"""Root-mean-square normalisation: torch's, and the modules of other libraries that look and behave like it."""

import copy
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.layers.rule import Call
from nngeo_generators.rules.normalization import NormalizationRule

__all__ = ["RMSNormLikeRule", "RMSNormRule"]


class RMSNormRule(NormalizationRule):
    """x_hat = x / sqrt(mean of x^2 + eps) over the last axes (Zhang & Sennrich 2019).

    Each entry of the normalised axes is a channel, each index before them a position.
    """

    name = "rms-norm"
    module_types: ClassVar[tuple[type[nn.Module], ...]] = (nn.RMSNorm,)

    def _normalized(self, module: nn.Module, call: Call) -> Tensor:
        assert isinstance(module, nn.RMSNorm)
        return nn.functional.rms_norm(call.tensor("x", 0), list(module.normalized_shape), eps=module.eps)

    def _example_axes(self, module: nn.Module) -> int:
        return _weight(module).ndim

    def _by_position(self, module: nn.Module, values: Tensor) -> Tensor:
        return values.reshape(*values.shape[:2], -1, _weight(module).numel())


class RMSNormLikeRule(RMSNormRule):
    """Any module `y = weight * x_hat + b` with one vector of weights, where x_hat and b follow from the input alone.

    x_hat is found by running the module with weights one and zero, and so is what it really multiplies, also where it
    computes in float32 inside a float64 model, or multiplies with `1 + weight`.
    """

    name = "rms-norm-like"
    module_types = ()

    def recognizes(self, module: nn.Module) -> bool:
        """Whether the module is built like the RMSNorm of a transformers model; its behaviour is checked at each call."""
        if not type(module).__name__.endswith(("RMSNorm", "T5LayerNorm")):
            return False
        parameters = dict(module.named_parameters())
        return (
            (hasattr(module, "variance_epsilon") or hasattr(module, "eps"))
            and list(parameters) == ["weight"]
            and parameters["weight"].ndim == 1
            and "forward" not in vars(module)
        )

    def _normalized(self, module: nn.Module, call: Call) -> Tensor:
        weight = _weight(module).detach()
        shift = _replayed(module, torch.zeros_like(weight), call)
        x_hat, output = _replayed(module, torch.ones_like(weight), call) - shift, _replayed(module, weight, call)
        error = (weight * x_hat + shift - output).norm()
        rounding = max(torch.finfo(dtype).eps for dtype in (output.dtype, torch.get_default_dtype()))
        if not error <= rounding**0.5 * output.norm():
            raise UnsupportedLayerError(
                f"'{call.path}' ({type(module).__name__}) has the name of a root-mean-square normalisation, but its output is "
                f"not linear in its weight (error {float(error):.1e}); register a layer rule for this type"
            )
        return x_hat


def _weight(module: nn.Module) -> Tensor:
    return cast(Tensor, module.weight)


def _replayed(module: nn.Module, weight: Tensor, call: Call) -> Tensor:
    """What the module returns with another weight, on the same arguments; its hooks do not run."""
    twin = copy.copy(module)
    twin._parameters = {"weight": nn.Parameter(weight, requires_grad=False)}
    with torch.no_grad():
        return cast(Tensor, twin.forward(*call.arguments, **call.keywords))
