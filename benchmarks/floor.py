"""How far the library is from its floor: the matrix products and convolutions that an operation must do, called bare.

Run `python benchmarks/floor.py`. Every figure is a ratio of two times measured in turn in one process, the median of
several repetitions, so that it does not depend on how fast or how busy the machine is.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from torch import Tensor, nn

from nngeo import FIM, ClassifLogits, GramMatrix, LayerCollection, random_pvector
from nngeo_core.plugins import registry

EXAMPLES, BATCH, CLASSES = 256, 64, 10
RANK = CLASSES - 1
"""That of a softmax's metric: so many directions the exact Fisher matrix has; a kernel has one for each output."""
Operation = Callable[[], object]


def mlp(*widths: int) -> nn.Sequential:
    """A multilayer perceptron with rectifiers."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convnet(a: int, b: int, c: int, d: int) -> nn.Sequential:
    """Four convolutions of 3 x 3 pixels, a halving of the image after every second one, and a linear layer on the means."""
    return nn.Sequential(
        *(nn.Conv2d(3, a, 3, padding=1), nn.ReLU(), nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(d, CLASSES)),
    )


@dataclass
class BareLayer:
    """Tensors of the shapes that a layer sees, and the products that an operation cannot do without.

    Attributes:
        layer: The module.
        x: Its input for m examples.
        g: Output gradients of all directions, shape (c m, ...).
        first: Whether nothing lies below that needs a gradient.
    """

    layer: nn.Linear | nn.Conv2d
    x: Tensor
    g: Tensor
    first: bool

    def __post_init__(self) -> None:
        m, c = len(self.x), len(self.g) // len(self.x)
        self.weight = self.layer.weight.detach()
        self.g_one = self.g[:m]
        if isinstance(self.layer, nn.Conv2d):
            self.patches = nn.functional.unfold(self.x, 3, padding=1)  # (m, A, s)
            self.columns = self.patches.transpose(0, 1).flatten(1).contiguous()  # (A, m s)
            self.rows = self.g.unflatten(0, (c, m)).transpose(0, 1).flatten(3).flatten(1, 2).contiguous()  # (m, c G, s)
            self.many_x = torch.randn(c * m, *self.x.shape[1:])

    def forward(self) -> None:
        """The layer on m examples."""
        self._apply(self.x)

    def _apply(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Conv2d):
            return nn.functional.conv2d(x, self.weight, padding=1)
        return x @ self.weight.T

    def backward(self, directions: int) -> None:
        """The derivative with respect to the input, for one direction or all."""
        if self.first:
            return
        g = self.g if directions > 1 else self.g_one
        if isinstance(self.layer, nn.Conv2d):
            self._convolution_backward(g, self.many_x if directions > 1 else self.x, (True, False, False))
        else:
            g @ self.weight

    def weight_gradient(self) -> None:
        """The derivative with respect to the weight, for one direction."""
        if isinstance(self.layer, nn.Conv2d):
            self._convolution_backward(self.g_one, self.x, (False, True, False))
        else:
            self.g_one.T @ self.x

    def _convolution_backward(self, g: Tensor, x: Tensor, wanted: tuple[bool, bool, bool]) -> None:
        ones = (1, 1)
        torch.ops.aten.convolution_backward(g, x, self.weight, None, ones, ones, ones, False, (0, 0), 1, wanted)

    def tangent(self) -> None:
        """How the output changes with the weight and with the input."""
        self._apply(self.x)
        if not self.first:
            self._apply(self.x)

    def diagonal(self) -> None:
        """Per-example gradients of all directions where positions are shared, else one product of squares."""
        if isinstance(self.layer, nn.Conv2d):
            self.rows @ self.patches.mT
        else:
            self.g_one.T @ self.x

    def gradients(self) -> None:
        """Per-example gradients of all directions where positions are shared; elsewhere nobody needs them."""
        if isinstance(self.layer, nn.Conv2d):
            self.rows @ self.patches.mT

    def gram(self, width: int) -> Operation:
        """Half of the Gram matrix, in blocks of rows: of per-example gradients, or of output gradients and of inputs."""
        shared = isinstance(self.layer, nn.Conv2d)
        rows = torch.randn(len(self.g), self.weight.numel()) if shared else self.g

        def products() -> None:
            for start in range(0, len(rows), width):
                rows[start : start + width] @ rows[start:].T
            if not shared:
                self.x @ self.x.T

        return products

    def factors(self) -> None:
        """Both Kronecker factors."""
        if isinstance(self.layer, nn.Conv2d):
            self.columns @ self.columns.T
            rows = self.rows.unflatten(1, (-1, self.weight.shape[0]))
            rows @ rows.mT
        else:
            self.x.T @ self.x
            self.g.T @ self.g


def bare_layers(model: nn.Sequential, x: Tensor, directions: int) -> list[BareLayer]:
    """The layers of a model with tensors of the shapes that they see for the examples x and a number of directions."""
    found: list[BareLayer] = []
    with torch.no_grad():
        for module in model:
            y = module(x)
            if isinstance(module, nn.Linear | nn.Conv2d):
                found.append(BareLayer(module, x, torch.randn(directions * len(y), *y.shape[1:]), first=not found))
            x = y
    return found


def floors(model: nn.Sequential, x: Tensor) -> dict[str, Operation]:
    """The bare products of each operation for the examples x, all directions of the metric together."""
    layers = bare_layers(model, x, RANK)

    def run(*steps: str, directions: int = RANK) -> None:
        for step in steps:
            for layer in layers:
                getattr(layer, step)(directions) if step == "backward" else getattr(layer, step)()

    @cache
    def rows() -> Tensor:
        return torch.randn(RANK * len(x), sum(p.numel() for p in model.parameters()))

    def dense() -> None:
        run("forward", "backward")
        for start in range(0, rows().shape[1], 512):
            rows()[:, start : start + 512].T @ rows()[:, start:]

    return {
        "product": lambda: run("forward", "tangent", "backward", "weight_gradient", directions=1),
        "diag": lambda: run("forward", "backward", "diagonal"),
        "kfac": lambda: run("forward", "backward", "factors"),
        "dense": dense,
    }


def fastest_floor(model: nn.Sequential, x: Tensor, name: str) -> Operation:
    """The floor of the whole data set in chunks of the size that serves it best."""
    chunks: dict[int, Operation] = {}
    for size in (4, 8, 16, 64):
        step = floors(model, x[:size])[name]
        chunks[size] = lambda step=step, size=size: [step() for _ in range(EXAMPLES // size)]
    return min(chunks.values(), key=lambda operation: min(seconds(operation) for _ in range(2)))


def fastest_gram_floor(model: nn.Sequential, x: Tensor) -> Operation:
    """The bare products of a Gram matrix: chunks of the size, and blocks of the width, that serve it best."""
    chunks = []
    for size in (4, 8, 16, 32, 64, len(x)):
        layers = bare_layers(model, x[:size], CLASSES)
        chunks.append(lambda layers=layers, size=size: [_derive(layers) for _ in range(len(x) // size)])
    wholes = []
    for width in (64, 128, 256):
        products = [layer.gram(width) for layer in bare_layers(model, x, CLASSES)]
        wholes.append(lambda products=products: [product() for product in products])
    derive, multiply = (min(some, key=lambda one: min(seconds(one) for _ in range(3))) for some in (chunks, wholes))
    return lambda: (derive(), multiply())


def _derive(layers: list[BareLayer]) -> None:
    for layer in layers:
        layer.forward()
        layer.backward(CLASSES)
        layer.gradients()


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = "wall"
"""Which one is read. That of the processor, with one thread, does not see what else a busy machine does."""


def seconds(operation: Operation) -> float:
    """The time of one call."""
    now = CLOCKS[clock]
    start = now()
    operation()
    return now() - start


def gradient(model: nn.Sequential, batches: list[tuple[Tensor, Tensor]]) -> Operation:
    """A plain gradient pass over the same batches: the unit of cost."""

    def run() -> None:
        for inputs, targets in batches:
            model.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
        model.zero_grad()

    return run


def operations(model: nn.Sequential, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Operation]:
    """What the library does."""
    layers = LayerCollection.from_model(model)
    generator = registry.generator("hooks")(model, ClassifLogits(), layer_collection=layers)
    v = random_pvector(layers)
    matrices = {name: lambda name=name: FIM(model, batches, name, CLASSES) for name in ("diag", "kfac", "dense")}
    return {"product": lambda: generator.product(v, batches), "gram": lambda: GramMatrix(model, batches), **matrices}


MLP, CONVNET = "MLP 784-512-512-10", "convnet 32-32-64-64, 3 x 32 x 32"
MODELS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    MLP: (lambda: mlp(784, 512, 512, 10), (784,)),
    CONVNET: (lambda: convnet(32, 32, 64, 64), (3, 32, 32)),
    "MLP 64-48-48-10": (lambda: mlp(64, 48, 48, 10), (64,)),
    "convnet 8-8-16-16, 3 x 16 x 16": (lambda: convnet(8, 8, 16, 16), (3, 16, 16)),
}
WORKLOADS: list[tuple[str, tuple[str, ...], int, int]] = [
    (MLP, ("product", "diag", "kfac"), EXAMPLES, BATCH),
    (CONVNET, ("product", "diag", "kfac"), EXAMPLES, BATCH),
    ("MLP 64-48-48-10", ("dense",), EXAMPLES, BATCH),
    ("convnet 8-8-16-16, 3 x 16 x 16", ("dense",), EXAMPLES, BATCH),
    (MLP, ("gram",), 128, 16),
    (CONVNET, ("gram",), 64, 16),
]


def main() -> None:
    """Print the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--only", default="", help="a part of a workload's name and operation")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall", help="cpu for a busy machine, with one thread"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    global clock
    clock = options.clock
    print("| workload | operation | times the floor | gradient passes | floor in gradient passes |")
    print("|---|---|---|---|---|")
    for title, names, examples, size in WORKLOADS:
        for name in names:
            if options.only in f"{title} {name}":
                print(row(title, name, examples, size, options.repetitions), flush=True)


def row(title: str, name: str, examples: int, size: int, repetitions: int) -> str:
    """One line of the table, of an operation over some examples in batches of a size."""
    torch.manual_seed(0)
    build, shape = MODELS[title]
    model, x, y = build(), torch.randn(examples, *shape), torch.randint(CLASSES, (examples,))
    batches = list(zip(x.split(size), y.split(size), strict=True))
    timed = {
        "ours": operations(model, batches)[name],
        "floor": fastest_gram_floor(model, x) if name == "gram" else fastest_floor(model, x, name),
        "gradient": gradient(model, batches),
    }
    times: dict[str, list[float]] = {key: [] for key in timed}
    for _ in range(repetitions):
        for key, operation in timed.items():
            times[key].append(seconds(operation))
    pairs = (("ours", "floor"), ("ours", "gradient"), ("floor", "gradient"))
    ratios = [median(a / b for a, b in zip(times[first], times[second], strict=True)) for first, second in pairs]
    return f"| {title} | {name} | {ratios[0]:.2f} | {ratios[1]:.1f} | {ratios[2]:.1f} |"


if __name__ == "__main__":
    main()
