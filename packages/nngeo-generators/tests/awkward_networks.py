"""More awkward models: pieces of networks in use that read weights, examples and positions in ways of their own."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .awkward import IMAGES, SEQUENCES, TOKENS, linear, model, weights
from .awkward_graphs import CASES

__all__ = ["CASES"]


def conditional_convolution(s: Any, x: Tensor) -> Tensor:
    """A kernel for each example: examples are groups of channels."""
    n, channels = x.shape[:2]
    kernels = s.kernels(x.mean((2, 3))).view(2 * n, channels, 3, 3)
    return F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, groups=n).unflatten(1, (n, 2))[0].mean((2, 3))


def multi_query(s: Any, x: Tensor) -> Tensor:
    """Causal attention of two heads that share keys and values."""
    q = s.q(x).unflatten(2, (2, 4)).transpose(1, 2)
    k, v = (part(x).unsqueeze(1).expand_as(q) for part in (s.k, s.v))
    found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return s.head(found.transpose(1, 2).flatten(2))[:, -1]


def state_space(s: Any, x: Tensor) -> Tensor:
    """A linear recurrence with a bare decay."""
    h, total = x.new_zeros(len(x), 4), 0
    for t in range(x.shape[1]):
        h = torch.sigmoid(s.decay) * h + s.a(x[:, t])
        total = total + s.head(h)
    return total


def fixed_point(s: Any, x: Tensor) -> Tensor:
    """As many steps as the batch needs."""
    z = torch.zeros_like(x)
    for _ in range(80):
        z, before = torch.tanh(0.2 * s.inner(z) + s.a(x)), z
        if (z - before).abs().max() < 1e-15:
            break
    return s.head(z)


def chosen_tokens(s: Any, x: Tensor) -> Tensor:
    """The two positions with the largest scores."""
    best = s.score(x).squeeze(-1).topk(2, 1)
    taken = x.gather(1, best.indices.unsqueeze(-1).expand(-1, -1, x.shape[2]))
    return s.head((taken * best.values.sigmoid().unsqueeze(-1)).sum(1))


def spatial_transformer(s: Any, x: Tensor) -> Tensor:
    """An image read at places that a layer finds."""
    identity = torch.eye(2, 3, dtype=x.dtype)
    grid = F.affine_grid(0.1 * s.place(x.flatten(1)).view(-1, 2, 3) + identity, list(x.shape), align_corners=False)
    return F.grid_sample(s.c(x), grid, align_corners=False).mean((2, 3))


def fourier(s: Any, x: Tensor) -> Tensor:
    """Frequencies weighted by complex numbers of two real parameters."""
    spectrum = torch.fft.rfft(x, dim=1) * torch.complex(s.real, s.imaginary)
    return s.head(torch.fft.irfft(spectrum, n=x.shape[1], dim=1).mean(1).tanh())


model("conditional-convolution", conditional_convolution, IMAGES, kernels=linear(2, 36))
model("multi-query", multi_query, SEQUENCES, q=linear(4, 8), k=linear(4, 4), v=linear(4, 4), head=linear(8))
model("state-space", state_space, SEQUENCES, decay=weights(4), a=linear(4, 4), head=linear())
model("fixed-point", fixed_point, inner=linear(4, 4), a=linear(4, 4), head=linear())
model("chosen-tokens", chosen_tokens, SEQUENCES, score=linear(4, 1), head=linear())
model(
    "spatial-transformer", spatial_transformer, IMAGES, place=linear(IMAGES[0].numel(), 6), c=lambda: nn.Conv2d(2, 2, 1)
)
model("fourier", fourier, SEQUENCES, real=weights(4, 4), imaginary=weights(4, 4), head=linear())
model(
    "stacked-children",
    lambda s, x: torch.einsum("eoi,ni->no", torch.stack([part.weight for part in s.parts]), x).tanh(),
    parts=lambda: nn.ModuleList([nn.Linear(4, 2, bias=False) for _ in range(3)]),
)
model(
    "learned-queries",
    lambda s, x: s.head(s.attention(s.queries.expand(len(x), -1, -1), x, x)[0].flatten(1)),
    SEQUENCES,
    queries=weights(1, 2, 4),
    attention=lambda: nn.MultiheadAttention(4, 2, batch_first=True),
    head=linear(8),
)
model(
    "one-hot",
    lambda s, t: s.head(F.one_hot(t, 7).to(s.table) @ s.table).mean(1),
    TOKENS,
    table=weights(7, 4),
    head=linear(),
)
model("stop-gradient", lambda s, x: s.head(s.a(x).tanh()) - s.a(x).detach()[:, :2], a=linear(4, 4), head=linear())
model("layer-on-the-identity", lambda s, x: x @ s.a(torch.eye(4, dtype=x.dtype)).tanh(), a=linear())
