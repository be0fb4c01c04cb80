"""Instance normalisation."""

from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from nngeo_core.layers.rule import Call
from nngeo_generators.rules.normalization import NormalizationRule

__all__ = ["InstanceNormRule"]


class InstanceNormRule(NormalizationRule):
    """x_hat = (x - mean) / sqrt(variance + eps) over the positions of each channel (Ulyanov, Vedaldi & Lempitsky 2016).

    A module that tracks running statistics uses them instead in eval mode.
    """

    name = "instance-norm"
    module_types = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

    def _normalized(self, module: nn.Module, call: Call) -> Tensor:
        assert isinstance(module, _InstanceNorm)
        x = call.tensor("input", 0)
        if module.training or module.running_mean is None or module.running_var is None:
            return nn.functional.instance_norm(x, eps=module.eps)
        mean, variance = module.running_mean.to(x.dtype), module.running_var.to(x.dtype)
        return nn.functional.batch_norm(x, mean, variance, eps=module.eps)

    def _example_axes(self, module: nn.Module) -> int:
        return 2 + next(k for k, kind in enumerate(self.module_types) if isinstance(module, kind))
