"""The rule of multi-head attention on any geometry: widths, heads, masks and layouts, against autograd."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nngeo_core import DenseJacobian, GaussianLikelihood, KroneckerJacobian
from nngeo_core.testing import output_jacobian
from nngeo_core.testing.jacobian_contract import agree
from nngeo_generators import HooksGenerator

QUERY, KEY, VALUE = range(3)
Mask = Callable[[Tensor, Tensor], Tensor]


class Attending(nn.Module):
    """Attention on what is cut from the rows of one tensor, so that one example is one row whatever the layout.

    Attributes:
        attn: The attention.
        shapes: (positions, width) of queries, keys and values; fewer of them where some are the same tensor.
        owners: Which of those is the query, the key, the value.
        mask: Makes `attn_mask` of queries and keys.
        padding: Makes `key_padding_mask` of them.
        options: Other keyword arguments of the call.
    """

    def __init__(
        self,
        attn: nn.MultiheadAttention,
        shapes: list[tuple[int, int]],
        owners: tuple[int, int, int],
        mask: Mask | None,
        padding: Mask | None,
        options: dict[str, bool],
    ) -> None:
        super().__init__()
        self.attn, self.shapes, self.owners = attn, shapes, owners
        self.mask, self.padding, self.options = mask, padding, options

    def forward(self, rows: Tensor) -> Tensor:
        flat = rows.split([positions * width for positions, width in self.shapes], 1)
        parts = [part.unflatten(1, shape) for part, shape in zip(flat, self.shapes, strict=True)]
        masks: dict[str, Any] = dict(self.options)
        for name, make in (("attn_mask", self.mask), ("key_padding_mask", self.padding)):
            if make is not None:
                masks[name] = make(parts[self.owners[QUERY]], parts[self.owners[KEY]])
        given = parts if self.attn.batch_first else [part.transpose(0, 1) for part in parts]
        outputs, weights = self.attn(*(given[k] for k in self.owners), **masks)
        outputs = outputs if self.attn.batch_first else outputs.transpose(0, 1)
        return outputs.flatten(1) if weights is None else torch.cat([outputs.flatten(1), weights.flatten(1)], 1)


def causal(query: Tensor, key: Tensor) -> Tensor:
    return torch.ones(query.shape[1], key.shape[1], dtype=torch.bool).triu(1)


def hidden(query: Tensor, key: Tensor) -> Tensor:
    """Never the first key, so that there is always one to attend to."""
    rows, columns = torch.arange(query.shape[1]).unsqueeze(1), torch.arange(key.shape[1])
    return ((rows + columns) % 2 == 1) & (columns > 0)


def added(query: Tensor, key: Tensor) -> Tensor:
    return torch.linspace(-1, 1, query.shape[1] * key.shape[1], dtype=query.dtype).view(query.shape[1], -1)


def padded(query: Tensor, key: Tensor) -> Tensor:
    return (key[..., 0] > -0.7) & (torch.arange(key.shape[1]) > 0)


def by_head(heads: int) -> Mask:
    """Numbers that differ from example to example and from head to head, shape (n h, t, s)."""
    scale = torch.arange(1.0, heads + 1, dtype=torch.float64).view(-1, 1, 1)
    return lambda query, key: (query.mean(2)[:, :, None] * key.mean(2)[:, None]).unsqueeze(1).mul(scale).flatten(0, 1)


@dataclass(frozen=True)
class Geometry:
    """A model of one attention, rows of inputs, and whether the rule knows its configuration."""

    model: Attending
    rows: Tensor
    known: bool


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Self and cross attention, with all widths, masks and layouts."""
    heads, n, t, s = (draw(st.sampled_from([3, 2, 1])) for _ in range(4))
    width = heads * draw(st.integers(1, 2))
    kind = draw(st.sampled_from(["self", "memory", "separate", "widths"]))
    key_width, value_width = (draw(st.integers(1, 4)) if kind == "widths" else width for _ in range(2))
    shapes = [(t, width), (s, key_width), (s, value_width)][: {"self": 1, "memory": 2}.get(kind, 3)]
    owners = {"self": (0, 0, 0), "memory": (0, 1, 1)}.get(kind, (0, 1, 2))
    extra = draw(st.sampled_from(["", "", "add_zero_attn", "add_bias_kv"]))
    mask = draw(st.sampled_from([None, causal, hidden, added, by_head(heads)]))
    padding = draw(st.sampled_from([padded, None])) if mask in (None, causal, hidden) else None
    options = {"need_weights": draw(st.booleans()), "average_attn_weights": draw(st.booleans())}
    if mask is causal and not extra:
        options["is_causal"] = draw(st.booleans())
    attn = nn.MultiheadAttention(
        width,
        heads,
        bias=draw(st.booleans()),
        kdim=key_width,
        vdim=value_width,
        batch_first=draw(st.booleans()),
        dtype=torch.float64,
        **({extra: True} if extra else {}),
    )
    source = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    for parameter in attn.parameters():
        nn.init.normal_(parameter, std=0.5, generator=source)
    rows = torch.randn(n, sum(a * b for a, b in shapes), dtype=torch.float64, generator=source)
    return Geometry(Attending(attn, shapes, owners, mask, padding, options), rows, extra != "add_bias_kv")


@settings(max_examples=90, deadline=None, derandomize=True, database=None)
@given(geometries())
def test_any_geometry_equals_autograd(case: Geometry) -> None:
    """By the rule where it knows the configuration, which the examination would replace if it were wrong."""
    generator = HooksGenerator(case.model, GaussianLikelihood())
    layers = generator.layer_collection
    found = generator.jacobian(case.rows).layers
    expected = output_jacobian(case.model, case.rows, [name for name, _ in layers.named_parameters(case.model)])
    for layer_id, place in layers.slices().items():
        assert type(found[layer_id]) is (KroneckerJacobian if case.known else DenseJacobian)
        agree(found[layer_id].to_dense(), expected[..., place], layer_id)
