"""A call of `nn.MultiheadAttention`, run again from its captured arguments so that its inner projections show."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.layers.rule import Call
from nngeo_generators.rules.attention_core import AttentionCore, attend

__all__ = ["AttentionReplay", "replay"]

INPUTS = ("query", "key", "value")
ARGUMENTS = (*INPUTS, "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")
"""Of `nn.MultiheadAttention.forward`, in their order."""


@dataclass(frozen=True, eq=False)
class AttentionReplay:
    """What a call computed.

    Attributes:
        inputs: Queries, keys and values before their projections, each of shape (n, s, width).
        owners: For each of the three, the number of the first one that is the same tensor.
        core: What became of their projections.
        heads: The core's outputs, shape (n, t, E).
        projection: The weight that takes the heads to the module's output, shape (E, E).
    """

    inputs: tuple[Tensor, ...]
    owners: tuple[int, ...]
    core: AttentionCore
    heads: Tensor
    projection: Tensor

    def pull_back(self, outputs: Tensor, weights: Tensor | None = None) -> list[Tensor]:
        """Derivatives of c directions with respect to the three projections, each of shape (c, n, s, E).

        Args:
            outputs: Those with respect to the module's output, shape (c, n, t, E).
            weights: Those with respect to the attention weights, if it returned them: shape (c, n, h, t, s), or
                (c, n, t, s) of their average over the heads.
        """
        if weights is not None and weights.ndim == 4:
            weights = weights.unsqueeze(2) / self.core.q.shape[1]
        found = self.core.pull_back(outputs @ self.projection, weights)
        return [g[:, :, : x.shape[1]] for x, g in zip(self.inputs, found, strict=True)]  # without `add_zero_attn`'s key


def replay(module: nn.MultiheadAttention, call: Call) -> AttentionReplay:
    """Run a call again.

    Raises:
        UnsupportedLayerError: The examples are not where they belong, or the module computed something else.
    """
    given = dict(zip(ARGUMENTS, call.arguments, strict=False)) | call.keywords
    raw = [given[name] for name in INPUTS]
    axis = 0 if module.batch_first else 1
    if any(x.ndim != 3 or x.shape[axis] != call.n_examples for x in raw):
        raise UnsupportedLayerError(
            f"'{call.path}' was called on shapes {[tuple(x.shape) for x in raw]} for {call.n_examples} examples; expected "
            f"three axes each, that of the examples in place {axis}, since its batch_first is {module.batch_first}"
        )
    inputs = tuple(_values(x if module.batch_first else x.transpose(0, 1)) for x in raw)
    core = _attend(module, inputs, given)
    found = AttentionReplay(inputs, _owners(raw), core, core.outputs, _values(module.out_proj.weight))
    _check_reproduced(module, call, found)
    return found


def _attend(module: nn.MultiheadAttention, inputs: Sequence[Tensor], given: Mapping[str, Any]) -> AttentionCore:
    """The core, run on the projected inputs."""
    separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    weights = separate if module.in_proj_weight is None else module.in_proj_weight.chunk(3)
    q, k, v = (F.linear(x, _values(weight)) for x, weight in zip(inputs, weights, strict=True))
    if module.in_proj_bias is not None:
        q, k, v = (x + bias for x, bias in zip((q, k, v), _values(module.in_proj_bias).chunk(3), strict=True))
    mask = _mask(given, module.num_heads, q, k)
    if module.add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        mask = None if mask is None else F.pad(mask, (0, 1))
    return attend(q, k, v, module.num_heads, mask)


def _mask(given: Mapping[str, Any], heads: int, q: Tensor, k: Tensor) -> Tensor | None:
    """What is added to the scores, broadcastable to (n, h, t, s).

    Where the module hands `is_causal` on to torch's attention, it does not look at the mask that came with it.
    """
    scores, padding = given.get("attn_mask"), given.get("key_padding_mask")
    if given.get("is_causal") and padding is None and not given.get("need_weights", True):
        scores = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).triu(1)
    masks = []
    if scores is not None:
        scores = scores.unflatten(0, (len(q), heads)) if scores.ndim == 3 else scores
        masks.append(_additive(scores, q.dtype))
    if padding is not None:
        masks.append(_additive(padding[:, None, None], q.dtype))
    return reduce(torch.add, masks) if masks else None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Minus infinity where a boolean mask is true; a mask of numbers as it is."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -math.inf)


def _owners(inputs: Sequence[Tensor]) -> tuple[int, ...]:
    """For each input, the number of the first one that is the same tensor (captured apart, they are equal views)."""
    keys = [(x.data_ptr(), x.shape, x.stride(), x.dtype) for x in inputs]
    return tuple(keys.index(key) for key in keys)


def _values(tensor: Tensor) -> Tensor:
    """Without its graph, in float32 or better."""
    return tensor.detach().to(result_dtype(tensor.dtype))


def _check_reproduced(module: nn.MultiheadAttention, call: Call, found: AttentionReplay) -> None:
    """Raise unless the module itself returns the same. It takes no fast path here, since its arguments were captured apart.

    Raises:
        UnsupportedLayerError: It does not.
    """
    with torch.no_grad():
        expected = _values(nn.MultiheadAttention.forward(module, *call.arguments, **call.keywords)[0])
    bias = None if module.out_proj.bias is None else _values(module.out_proj.bias)
    outputs = F.linear(found.heads, found.projection, bias)
    error = (outputs - (expected if module.batch_first else expected.transpose(0, 1))).norm()
    if not error <= torch.finfo(module.out_proj.weight.dtype).eps ** 0.5 * expected.norm():
        raise UnsupportedLayerError(
            f"'{call.path}' ({type(module).__name__}), run again on its inputs, does not return what the rule for attention "
            f"computes (error {float(error):.1e} of {float(expected.norm()):.1e})"
        )
