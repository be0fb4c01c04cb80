"""What nngeo-generators registers: the hook-based generator and the built-in layer rules."""

from torch import nn

from nngeo_core.layers.rule import LayerRule
from nngeo_core.plugins import hookimpl
from nngeo_core.sweep.operator import OperatorGenerator
from nngeo_generators.hessian import HessianGenerator
from nngeo_generators.hooks import HooksGenerator
from nngeo_generators.rules.attention import MultiheadAttentionRule
from nngeo_generators.rules.batch_norm import BatchNormRule
from nngeo_generators.rules.conv import ConvRule
from nngeo_generators.rules.conv_transpose import ConvTransposeRule
from nngeo_generators.rules.embedding import EmbeddingRule
from nngeo_generators.rules.embedding_bag import EmbeddingBagRule
from nngeo_generators.rules.generic import generic_rule
from nngeo_generators.rules.group_norm import GroupNormRule
from nngeo_generators.rules.instance_norm import InstanceNormRule
from nngeo_generators.rules.layer_norm import LayerNormRule
from nngeo_generators.rules.linear import LinearRule
from nngeo_generators.rules.recurrent import RecurrentRule
from nngeo_generators.rules.rms_norm import RMSNormLikeRule, RMSNormRule
from nngeo_generators.rules.transformers_conv1d import TransformersConv1DRule

__all__ = ["nngeo_generators", "nngeo_layer_rules", "nngeo_resolve_rule"]


@hookimpl
def nngeo_generators() -> list[type[OperatorGenerator]]:
    """Generators by name: `hessian`, `hooks`."""
    return [HessianGenerator, HooksGenerator]


@hookimpl
def nngeo_layer_rules() -> list[LayerRule]:
    """One rule for each built-in layer type."""
    return [
        BatchNormRule(),
        ConvRule(),
        ConvTransposeRule(),
        EmbeddingBagRule(),
        EmbeddingRule(),
        GroupNormRule(),
        InstanceNormRule(),
        LayerNormRule(),
        LinearRule(),
        MultiheadAttentionRule(),
        RMSNormRule(),
        RecurrentRule(),
    ]


@hookimpl(trylast=True)
def nngeo_resolve_rule(module: nn.Module) -> LayerRule:
    """The rule of a layer of transformers, recognised without importing that library; the generic way for all else."""
    known = next((rule for rule in (RMSNormLikeRule(), TransformersConv1DRule()) if rule.recognizes(module)), None)
    return generic_rule(module) if known is None else known
