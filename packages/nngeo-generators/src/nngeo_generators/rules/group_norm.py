"""Group normalisation."""

from torch import Tensor, nn

from nngeo_core.layers.rule import Call
from nngeo_generators.rules.normalization import NormalizationRule

__all__ = ["GroupNormRule"]


class GroupNormRule(NormalizationRule):
    """x_hat = (x - mean) / sqrt(variance + eps) over the channels and positions of a group (Wu & He 2018)."""

    name = "group-norm"
    module_types = (nn.GroupNorm,)

    def _normalized(self, module: nn.Module, call: Call) -> Tensor:
        assert isinstance(module, nn.GroupNorm)
        return nn.functional.group_norm(call.tensor("input", 0), module.num_groups, eps=module.eps)
