"""Awkward models: what people write, and what goes wrong in it. Each is exact or refused with a reason, never silently wrong.

The table says which. All take examples first and return (n, c); n = 5, positions T = 6 unless the name says `square` (T = n).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

__all__ = ["CASES", "Awkward"]


@dataclass(frozen=True)
class Awkward:
    """A model and its inputs.

    Attributes:
        build: Makes the model.
        inputs: Shape (5, ...).
        refused: How the refusal reads, as a regular expression; empty where everything is exact.
    """

    build: Callable[[], nn.Module]
    inputs: Tensor = field(repr=False)
    refused: str = ""


CASES: dict[str, Awkward] = {}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


ROWS, SEQUENCES, SQUARE, IMAGES = draw(5, 4), draw(5, 6, 4), draw(5, 5, 4), draw(5, 2, 6, 6)
TOKENS = torch.randint(7, (5, 6), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A model whose forward pass is a function of itself and its input."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.function(self, *inputs, **named)


def case(inputs: Tensor = ROWS, refused: str = "") -> Callable[[Callable[[], nn.Module]], None]:
    """Enter a model into the table, under its function's name."""

    def enter(build: Callable[[], nn.Module]) -> None:
        CASES[build.__name__.strip("_").replace("_", "-")] = Awkward(build, inputs, refused)

    return enter


def model(
    name: str, function: Callable[..., Any], inputs: Tensor = ROWS, refused: str = "", **parts: Callable[[], Any]
) -> None:
    """Enter a model made of a function and of parts, each given by what makes it."""
    CASES[name] = Awkward(lambda: Net(function, **{key: make() for key, make in parts.items()}), inputs, refused)


def weights(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape))


def linear(inputs: int = 4, outputs: int = 2, bias: bool = True) -> Callable[[], nn.Linear]:
    return lambda: nn.Linear(inputs, outputs, bias)


def shifted(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


class Scale(nn.Module):
    """One factor for each channel: a layer that no table knows."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


# The examples are on another axis, in another order, or not one row each
attention = {"a": lambda: nn.MultiheadAttention(4, 2), "head": linear()}
for name, inputs in {"": SEQUENCES, "-square": SQUARE}.items():
    model(
        f"attention-sequence-first{name}", lambda s, x: s.head(s.a(*[shifted(x)] * 3)[0].mean(0)), inputs, **attention
    )
    model(
        f"lstm-sequence-first{name}", lambda s, x: s.head(s.a(shifted(x))[0][-1]), inputs,
        a=lambda: nn.LSTM(4, 3), head=linear(3),
    )  # fmt: skip
    model(
        f"scale-sequence-first{name}",
        lambda s, x: s.head(s.a(shifted(x)).tanh().mean(0)),
        inputs,
        a=Scale,
        head=linear(),
    )
    model(
        f"linear-sequence-first{name}",
        lambda s, x: s.head(s.a(shifted(x)).tanh().mean(0)),
        inputs,
        a=linear(4, 4),
        head=linear(),
    )
    model(f"position-vector{name}", lambda s, x: s.head((x + s.p(torch.arange(x.shape[1]))).tanh().mean(1)), inputs,
          p=lambda: nn.Embedding(6, 4), head=linear())  # fmt: skip
    model(f"folded-examples-first{name}", lambda s, x: s.head(s.a(x.flatten(0, 1)).tanh().view(x.shape).mean(1)), inputs,
          a=linear(4, 4), head=linear())  # fmt: skip
    model(
        f"folded-positions-first{name}",
        lambda s, x: s.head(s.a(shifted(x).flatten(0, 1)).tanh().view(shifted(x).shape).mean(0)),
        inputs, a=linear(4, 4), head=linear(),
    )  # fmt: skip
model("attention-over-examples", lambda s, x: s.head(s.a(x, x, x)[0].mean(1)), SEQUENCES, "mixes examples", **attention)
model(
    "frames-folded-into-images",
    lambda s, x: s.head(s.a(x.flatten(0, 1)[:, None]).tanh().mean((2, 3)).view(len(x), -1)),
    IMAGES, a=lambda: nn.Conv2d(1, 2, 3), head=linear(),
)  # fmt: skip
model("examples-last", lambda s, x: (s.w @ x.T).tanh().T, w=weights(3, 4))
model("flipped", lambda s, x: s.head(s.a(x.flip(0)).tanh().flip(0)), a=linear(4, 3), head=linear(3))
model(
    "sorted",
    lambda s, x: s.head(s.a(x[x[:, 0].argsort()]).tanh()[x[:, 0].argsort().argsort()]),
    a=linear(4, 3),
    head=linear(3),
)
model(
    "chunked", lambda s, x: torch.cat([s.head(s.a(part).tanh()) for part in x.chunk(2)]), a=linear(4, 3), head=linear(3)
)
model("one-by-one", lambda s, x: torch.stack([s.head(s.a(row).tanh()) for row in x]), a=linear(4, 3), head=linear(3))
model(
    "siamese",
    lambda s, x: s.head(torch.subtract(*s.a(torch.cat([x, x.sin()])).tanh().chunk(2))),
    a=linear(4, 3),
    head=linear(3),
)
model(
    "interleaved",
    lambda s, x: s.head(s.a(torch.stack([x, x.sin()], 1).flatten(0, 1)).tanh()[::2]),
    a=linear(4, 3),
    head=linear(3),
)


@case(SEQUENCES)
def windowed_attention() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        windows = x.unflatten(1, (3, 2)).flatten(0, 1)
        return s.head(s.a(windows, windows, windows)[0].unflatten(0, (len(x), 3)).mean((1, 2)))

    return Net(forward, a=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 2))


def experts(threshold: float) -> Callable[[], nn.Module]:
    def forward(s: Any, x: Tensor) -> Tensor:
        gates, out = s.router(x).softmax(1), torch.zeros(len(x), 3, dtype=x.dtype)
        for k, expert in enumerate(s.experts):
            chosen = ((x[:, 0] > threshold) == bool(k)).nonzero()[:, 0]
            if len(chosen):
                out = out.index_add(0, chosen, expert(x[chosen]) * gates[chosen, k : k + 1])
        return s.head(out.tanh())

    parts = {"router": nn.Linear(4, 2), "head": nn.Linear(3, 2)}
    return lambda: Net(forward, experts=nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]), **parts)


for count, threshold in {"some": 0.0, "one": float(ROWS[:, 0].sort().values[-2]), "none": 9.0}.items():
    CASES[f"experts-{count}-routed"] = Awkward(experts(threshold), ROWS)


@case(SEQUENCES)
def routed_tokens() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        mask = s.router(tokens).argmax(1) > 0
        tokens = tokens.masked_scatter(mask[:, None], s.expert(tokens[mask])).tanh()
        return s.head(tokens.view_as(x).mean(1))

    return Net(forward, router=nn.Linear(4, 2), expert=nn.Linear(4, 4), head=nn.Linear(4, 2))


# What all examples share
embedding: dict[str, Callable[[], Any]] = {"p": lambda: nn.Embedding(6, 4), "head": linear()}
for name, use in {
    "row": lambda p, x: p,
    "squeezed": lambda p, x: p[0],
    "viewed": lambda p, x: p.view(6, 4),
    "repeated": lambda p, x: p.repeat(len(x), 1, 1),
}.items():
    model(
        f"position-{name}",
        lambda s, x, use=use: s.head((x + use(s.p(torch.arange(6)[None]), x)).tanh().mean(1)),
        SEQUENCES,
        **embedding,
    )
model(
    "hypernetwork",
    lambda s, x: s.head(F.linear(x, s.a(s.z).view(3, 4)).tanh()),
    z=weights(2),
    a=linear(2, 12),
    head=linear(3),
)


@case(SEQUENCES)
def bare_parameters() -> nn.Module:
    """Class token, position embedding (1, T, D), layer scale (D,) and a temperature without axes."""

    def forward(s: Any, x: Tensor) -> Tensor:
        tokens = torch.cat([s.token.expand(len(x), -1, -1), x + s.position], 1).tanh()
        return s.head(tokens[:, 0] + s.scale * s.a(tokens).mean(1)) / s.temperature

    parts = {"token": (1, 1, 4), "position": (1, 6, 4), "scale": (4,), "temperature": ()}
    made = {key: nn.Parameter(torch.randn(shape) + 2) for key, shape in parts.items()}
    return Net(forward, a=nn.Linear(4, 4), head=nn.Linear(4, 2), **made)


model(
    "parameter-list",
    lambda s, x: s.head((x * s.w[0] + s.w[1]).tanh()),
    w=lambda: nn.ParameterList([torch.randn(4), torch.randn(())]),
    head=linear(),
)
model(
    "layer-scale-square",
    lambda s, x: s.head((s.scale * x.tanh()).mean(1)),
    SQUARE.repeat(1, 1, 1),
    scale=weights(4),
    head=linear(),
)
model("scalar-parameter", lambda s, x: s.head(x) * s.t.exp(), t=weights(), head=linear())
model(
    "ensemble-under-vmap",
    lambda s, x: s.head(torch.vmap(lambda w: (x @ w).tanh())(s.w).mean(0)),
    w=weights(2, 4, 3),
    head=linear(3),
)

# Parameters used outside their module's call, tied, or made anew in each call
model(
    "embedding-as-head", lambda s, t: F.linear(s.e(t).mean(1).tanh(), s.e.weight), TOKENS, e=lambda: nn.Embedding(7, 4)
)
model("parent-reads-child", lambda s, x: s.head((x @ s.a.weight.T).tanh()), a=linear(4, 3), head=linear(3))
model("encoder-as-decoder", lambda s, x: F.linear(s.a(x).tanh(), s.a.weight.T), a=linear(4, 3))
model("called-twice", lambda s, x: s.head(s.a(s.a(x).tanh()).tanh()), a=linear(4, 4), head=linear())
model("prelu-called-twice", lambda s, x: s.head(s.p(s.a(s.p(x)))), p=nn.PReLU, a=linear(4, 4), head=linear())
model(
    "low-rank-update",
    lambda s, x: F.linear(x, s.a.weight + s.up @ s.down, s.a.bias),
    a=linear(),
    up=weights(2, 1),
    down=weights(1, 4),
)


@case(TOKENS)
def tied_embedding_and_head() -> nn.Module:
    net = Net(lambda s, t: s.head(s.e(t).mean(1).tanh()), e=nn.Embedding(7, 4), head=nn.Linear(4, 7))
    net.head.weight = net.e.weight
    return net


@case()
def registered_twice() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.Sequential(shared, nn.Tanh(), nn.Sequential(shared, nn.PReLU()), nn.Linear(4, 2))


@case()
def patched_forward() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    net[0].forward = MethodType(lambda self, x: F.linear(x, self.weight * 2, self.bias), net[0])
    return net


@case()
def overridden_forward() -> nn.Module:
    class Standardized(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)

    return nn.Sequential(Standardized(4, 3), nn.Tanh(), nn.Linear(3, 2))


@case()
def symmetric_parametrization() -> nn.Module:
    class Symmetric(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w + w.T

    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    parametrize.register_parametrization(net[0], "weight", Symmetric())
    return net


@case()
def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2))


for norm in (parametrizations.weight_norm, parametrizations.spectral_norm):
    CASES[norm.__name__.replace("_", "-")] = Awkward(
        lambda norm=norm: nn.Sequential(norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2)), ROWS
    )
