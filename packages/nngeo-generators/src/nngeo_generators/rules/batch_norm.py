"""Batch normalisation with running statistics."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nngeo_core.layers.rule import Call
from nngeo_generators.rules.normalization import NormalizationRule

__all__ = ["BatchNormRule"]


class BatchNormRule(NormalizationRule):
    """x_hat = (x - running mean) / sqrt(running variance + eps), for each channel (Ioffe & Szegedy 2015).

    With the statistics of the batch no derivative of one example exists. The generator refuses modules in that mode, not
    this rule's `check`: the layers of a model in training mode may be collected.
    """

    name = "batch-norm"
    module_types = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

    def _normalized(self, module: nn.Module, call: Call) -> Tensor:
        assert isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
        x = call.tensor("input", 0)
        mean, variance = module.running_mean.to(x.dtype), module.running_var.to(x.dtype)
        return nn.functional.batch_norm(x, mean, variance, eps=module.eps)
