"""Multi-head attention: two linear layers around its core, which is run again to find the derivatives between them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers.layer import ParameterLayer
from nngeo_core.layers.rule import Call, LayerRule
from nngeo_generators.rules.attention_replay import AttentionReplay, replay
from nngeo_generators.rules.weight_and_bias import weight_layout

__all__ = ["MultiheadAttentionRule"]

SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
HEADS = ("out_proj.weight", "out_proj.bias")
PARTS_OF_ONE_WIDTH = (("in_proj_weight", "in_proj_bias"), HEADS)
PARTS_OF_SEVERAL_WIDTHS = (*((name,) for name in SEPARATE), ("in_proj_bias",), HEADS)


class MultiheadAttentionRule(LayerRule):
    """J = sum_s g_s (x) x_s for the projections of queries, keys and values, and for that of the heads.

    The derivatives g at the inner projections follow from the output gradients by a few products. Where queries, keys and
    values are different tensors, their positions lie side by side, with g zero in the rows that a position does not feed.
    A module with `add_bias_kv` goes the generic way.
    """

    name = "multihead-attention"
    module_types = (nn.MultiheadAttention,)
    claims_subtree = True
    way = "replayed, and read off its projections"
    one_output = False

    def describe(self, module: nn.Module) -> ParameterLayer:
        """The projections of the inputs, then that of the heads, as far as the module has them."""
        own = dict(module.named_parameters(remove_duplicate=False))
        return ParameterLayer(tuple((name, tuple(own[name].shape)) for part in self.parts(module) for name in part))

    def parts(self, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """The projections in, as one matrix or as three and the bias that they share; the projection out."""
        own = dict(module.named_parameters(remove_duplicate=False))
        parts = PARTS_OF_ONE_WIDTH if "in_proj_weight" in own else PARTS_OF_SEVERAL_WIDTHS
        found = (tuple(name for name in part if name in own) for part in parts)
        return tuple(part for part in found if part)

    def structure(self, module: nn.Module, names: tuple[str, ...]) -> Structure:
        """Inputs of a projection times the gradients of its outputs."""
        return Structure(weight_layout(module, names))

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor | tuple[Tensor, ...], names: tuple[str, ...]
    ) -> KroneckerJacobian:
        """Of the parameters of one part."""
        assert isinstance(module, nn.MultiheadAttention)
        gradients = (output_gradients,) if isinstance(output_gradients, Tensor) else output_gradients
        found = call.once("replay", lambda: replay(module, call))
        g = gradients[0] if module.batch_first else gradients[0].transpose(1, 2)
        if names[0] in HEADS:
            return _kronecker(found.heads, g, module, names)
        projected = found.pull_back(g, *gradients[1:])
        if names[0] in SEPARATE:
            k = SEPARATE.index(names[0])
            return _kronecker(found.inputs[k], projected[k], module, names)
        return _side_by_side(found, projected, module, names)


def _side_by_side(
    found: AttentionReplay, gradients: Sequence[Tensor], module: nn.Module, names: tuple[str, ...]
) -> KroneckerJacobian:
    """All projections as one: the positions of each different input, g zero in the rows of the others' projections."""
    inputs, rows = [], []
    for k in sorted(set(found.owners)):
        pairs = zip(gradients, found.owners, strict=True)
        rows.append(torch.cat([g if owner == k else torch.zeros_like(gradients[k]) for g, owner in pairs], -1))
        inputs.append(found.inputs[k] if "in_proj_weight" in names else found.inputs[k][..., :0])
    return _kronecker(torch.cat(inputs, 1), torch.cat(rows, 2), module, names)


def _kronecker(a: Tensor, g: Tensor, module: nn.Module, names: tuple[str, ...]) -> KroneckerJacobian:
    """The Jacobian of a linear layer, of its weight, its bias or both."""
    a = a if names[0].endswith("weight") else a[..., :0]
    return KroneckerJacobian(a.unsqueeze(2), g.unsqueeze(3), weight_layout(module, names))
