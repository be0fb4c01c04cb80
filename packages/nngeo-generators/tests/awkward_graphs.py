"""More awkward models: custom graphs, hidden state, odd inputs and outputs, in-place operations, and what mixes examples."""

import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from .awkward import CASES, IMAGES, ROWS, SEQUENCES, TOKENS, Net, Scale, case, linear, model

__all__ = ["CASES"]

two: dict[str, Callable[[], Any]] = {"a": linear(4, 3), "head": linear(3)}
square: dict[str, Callable[[], Any]] = {"a": linear(4, 4), "head": linear()}


def empty(inputs: int, outputs: int) -> Callable[[], nn.Module]:
    """A linear layer without weights, whose initialisation warns."""

    def make() -> nn.Module:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            return nn.Linear(inputs, outputs)

    return make


# Custom backward passes, cut graphs
class Tanh(torch.autograd.Function):
    """With a backward pass of plain operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class OnceTanh(Tanh):
    """With a backward pass that has no derivative."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class NumpyTanh(Tanh):
    """With a backward pass that autograd cannot look into, for one direction at a time."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.from_numpy(
            gradient.detach().numpy() * (1 - numpy.tanh(ctx.saved_tensors[0].detach().numpy()) ** 2)
        )


for function in (Tanh, OnceTanh, NumpyTanh):
    model(f"custom-{function.__name__}", lambda s, x, f=function: s.head(f.apply(s.a(x))), **two)
model("straight-through", lambda s, x: s.head(s.a(x) + (s.a(x).round() - s.a(x)).detach()), **two)
model("detached", lambda s, x: s.head(s.a(x).detach() + x[:, :3]), **two)
model("custom-generic", lambda s, x: s.head(OnceTanh.apply(s.p(x))), p=Scale, head=linear())


@case()
def own_no_grad() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = s.a(x)
        return s.head(h.tanh())

    return Net(forward, a=nn.Linear(4, 3), head=nn.Linear(3, 2))


@case()
def own_inference_mode() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        with torch.inference_mode():
            h = s.a(x)
        return s.head(h.clone().tanh())

    return Net(forward, a=nn.Linear(4, 3), head=nn.Linear(3, 2))


@case()
def decorated_no_grad() -> nn.Module:
    class Frozen(Scale):
        forward = torch.no_grad()(Scale.forward)

    return nn.Sequential(nn.Linear(4, 4), Frozen(), nn.Linear(4, 2))


@case()
def energy_and_force() -> nn.Module:
    """The outputs are derivatives of a network's output with respect to its input."""

    def forward(s: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = s.head(s.a(x).tanh()).sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return force

    return Net(forward, a=nn.Linear(4, 3), head=nn.Linear(3, 1))


blocks: dict[str, Callable[[], Any]] = {
    "stem": linear(4, 4),
    "block": lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)),
    "head": linear(),
}
for name, inputs in {"": ROWS, "-of-sequences": SEQUENCES}.items():
    model(
        f"checkpointed{name}",
        lambda s, x: s.head(checkpoint(s.block, s.stem(x).tanh(), use_reentrant=False)).flatten(1, -1)[:, :2],
        inputs,
        **blocks,
    )
model(
    "checkpointed-reentrantly",
    lambda s, x: s.head(checkpoint(s.block, s.stem(x).tanh(), use_reentrant=True)),
    refused="autograd cannot differentiate this model: .*heckpoint",
    **blocks,
)


@case()
def compiled() -> nn.Module:
    return torch.compile(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), backend="eager")


# Hidden state, control flow that follows the data
@case(SEQUENCES)
def cell_in_a_loop() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = s.cell(x[:, t], state)
        return s.head(state[0])

    return Net(forward, cell=nn.LSTMCell(4, 3), head=nn.Linear(3, 2))


@case(SEQUENCES)
def state_kept_on_the_module() -> nn.Module:
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.h = nn.Parameter(torch.randn(4)), torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            self.h = torch.tanh(self.w * self.h + x)
            return self.h

    def forward(s: Any, x: Tensor) -> Tensor:
        s.memory.h = torch.zeros(len(x), 4, dtype=x.dtype)
        return s.head([s.memory(x[:, t]) for t in range(x.shape[1])][-1])

    return Net(forward, memory=Memory(), head=nn.Linear(4, 2))


@case(SEQUENCES)
def packed_sequence() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        lengths = 2 + (x[:, 0, 0] > 0).long() * 3
        return s.head(s.a(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1][0])

    return Net(forward, a=nn.GRU(4, 3), head=nn.Linear(3, 2))


model("gru-hidden-state", lambda s, x: s.head(s.a(x)[1].transpose(0, 1).flatten(1)), SEQUENCES,
      a=lambda: nn.GRU(4, 3, 2, batch_first=True, bidirectional=True), head=linear(12))  # fmt: skip
model(
    "branch-by-row",
    lambda s, x: s.head(torch.cat([s.a(r[None]).tanh() if r.sum() > 0 else s.a(r[None]) for r in x])),
    **two,
)
model("branch-by-batch", lambda s, x: s.head(s.a(x).tanh() if len(x) > 1 else s.a(x).tanh() + 0), **two)
model(
    "early-exit",
    lambda s, x: s.head(s.a(x)[:, :2]) if x.isnan().any() else s.other(s.a(x)),
    a=linear(4, 3),
    head=linear(),
    other=linear(3),
)


# What goes in and comes out of modules
@dataclass
class Record:
    x: Tensor
    name: str = ""


Pair = namedtuple("Pair", ["x", "rest"])


class Talker(nn.Module):
    """Takes and returns a tensor in some wrapping, with a parameter of its own."""

    def __init__(self, wrap: Callable[[Tensor], Any], unwrap: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.a, self.factor, self.wrap, self.unwrap = nn.Linear(4, 4), nn.Parameter(torch.randn(4)), wrap, unwrap

    def forward(self, given: Any) -> Any:
        return self.wrap(self.a(self.unwrap(given)) * self.factor)


for name, wrap, unwrap in [
    ("dict", lambda x: {"x": (x, 3, None)}, lambda d: d["x"][0]),
    ("tuple", lambda x: (None, x), lambda t: t[1]),
    ("namedtuple", lambda x: Pair(x, "rest"), lambda p: p.x),
    ("dataclass", lambda x: Record(x), lambda r: r.x),
]:
    model(f"{name}-between-modules", lambda s, x, wrap=wrap, unwrap=unwrap: s.head(unwrap(s.t(wrap(x))).tanh()),
          t=partial(Talker, wrap, unwrap), head=linear())  # fmt: skip
model("keyword-arguments", lambda s, x: s.head(s.t(given={"x": (x,)})["x"][0]),
      t=partial(Talker, lambda x: {"x": (x,)}, lambda d: d["x"][0]), head=linear())  # fmt: skip
model(
    "view-returned",
    lambda s, x: s.head(s.t(x).relu_()),
    t=partial(Talker, lambda x: x.view(-1, 2, 2).transpose(1, 2).reshape(-1, 4)[:, :], lambda x: x),
    head=linear(),
)
model("spectrum", lambda s, x: s.head(torch.fft.rfft(s.p(s.a(x))).abs()), a=linear(4, 4), p=Scale, head=linear(3))
model(
    "bag-of-words",
    lambda s, t: s.head(s.e(t).tanh()),
    TOKENS,
    e=lambda: nn.EmbeddingBag(7, 4, mode="mean"),
    head=linear(),
)
model(
    "padding",
    lambda s, t: s.head(s.e(t).mean(1).tanh()),
    TOKENS,
    e=lambda: nn.Embedding(7, 4, padding_idx=2),
    head=linear(),
)
model("bilinear", lambda s, x: s.b(x, x.sin()), b=lambda: nn.Bilinear(4, 4, 2))
model(
    "prelu-image",
    lambda s, x: s.c(s.p(s.c(x).sin())).mean((2, 3)),
    IMAGES,
    c=lambda: nn.Conv2d(2, 2, 3),
    p=lambda: nn.PReLU(2),
)
model("one-parameter", lambda s, x: s.a(x[:, :1]), a=linear(1, 1, False))
model("no-parameters-in-a-layer", lambda s, x: s.head(torch.cat([x, s.a(x)], 1)), a=empty(4, 0), head=linear())
model("no-inputs-to-a-layer", lambda s, x: s.head(x + s.a(x[:, :0])), a=empty(0, 4), head=linear())
model(
    "sparse-embedding",
    lambda s, t: s.head(s.e(t).mean(1)),
    TOKENS,
    "sparse",
    e=lambda: nn.Embedding(7, 4, sparse=True),
    head=linear(),
)


@case()
def frozen_parts() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    for frozen in (net[0], net[2].bias, net[1]):
        frozen.requires_grad_(False)
    return net


@case()
def hooks_of_the_users() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 2))
    net[1].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    net[1].register_forward_hook(lambda module, args, output: output.sin())
    net.register_forward_hook(lambda module, args, output: 3 * output)
    net[0].weight.register_hook(lambda gradient: 0 * gradient)
    return net


# In-place operations
model("in-place-residual", lambda s, x: s.head(s.a(x).add_(x).tanh()), **square)
model(
    "in-place-slices",
    lambda s, x: s.head(torch.zeros_like(x).copy_(s.a(x)).index_fill_(1, torch.tensor([1]), 0.5)),
    **square,
)
model("counter-in-a-buffer", lambda s, x: s.head(s.n(s.a(x))), a=linear(4, 3), head=linear(3), n=lambda: Counting())


class Counting(nn.PReLU):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x).tanh()


@case(refused="layer 'a': the input of 'a' was changed in place after the layer had read it")
def input_changed_after_it_was_read() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = x.tanh()
        y = s.a(h)
        h.mul_(2)
        return s.head(y + h)

    return Net(forward, a=nn.Linear(4, 4), head=nn.Linear(4, 2))


model("input-changed", lambda s, x: s.head(x.mul_(2)), refused="the model changes its inputs in place", head=linear())

# No derivative of one example: mixed or random
MIXES, RANDOM = "mixes examples", "draws random numbers"
for name, mix in {
    "mean-subtracted": lambda h: h - h.mean(0),
    "cumulative-sum": lambda h: h.cumsum(0),
    "cumulative-sum-reversed": lambda h: h.flip(0).cumsum(0).flip(0),
    "softmax-over-examples": lambda h: h.softmax(0),
    "layer-norm-over-examples": lambda h: F.layer_norm(h.T, h.T.shape[1:]).T,
    "neighbours": lambda h: h + torch.cat([h[:1], h[:-1]]),
    "largest-in-batch": lambda h: h / h.abs().max(),
    "similarities": lambda h: h @ h.T,
    "similarities-twice": lambda h: torch.cat([h @ h.T] * 2, 1),
}.items():
    model(name, lambda s, x, mix=mix: mix(s.a(x)), refused=MIXES, a=linear(4, 3))
model(
    "middle-mixed",
    lambda s, x: s.head(torch.cat([s.a(x)[:2], s.a(x)[1:2], s.a(x)[3:]]) if len(x) > 4 else s.a(x)),
    refused=MIXES,
    **two,
)
model(
    "middle-swapped",
    lambda s, x: s.head(torch.cat([x[:1], x[2:3], x[1:2], x[3:]]) if len(x) > 4 else x),
    refused=MIXES,
    head=linear(),
)
model(
    "functional-batch-norm",
    lambda s, x: s.head(F.batch_norm(x, None, None, training=True)),
    refused="cannot be called on 1 of the examples alone",
    head=linear(),
)
model(
    "functional-batch-norm-of-images",
    lambda s, x: s.c(F.batch_norm(x, None, None, training=True)).mean((2, 3)),
    IMAGES, MIXES, c=lambda: nn.Conv2d(2, 2, 3),
)  # fmt: skip
model("functional-dropout", lambda s, x: s.head(F.dropout(x, 0.5, True)), refused=RANDOM, head=linear())
model(
    "noise-shared-by-the-batch",
    lambda s, x: s.head(x + torch.randn(1, 4, dtype=x.dtype)),
    refused=RANDOM,
    head=linear(),
)


@case(refused="'1' \\(BatchNorm1d\\) normalises with the statistics of the batch")
def batch_norm_in_training() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).train()


@case(refused="'1' \\(Dropout\\) drops units at random")
def dropout_in_training() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 2)).train()


@case(refused=RANDOM)
def state_carried_from_pass_to_pass() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        s.h = s.head(x).tanh() + s.h.mean()
        return s.h

    net = Net(forward, head=nn.Linear(4, 2))
    net.h = torch.zeros(())
    return net
