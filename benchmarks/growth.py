"""How cost grows: with outputs, examples and depth, as fitted exponents and a plot.

Run `python -m benchmarks.growth`. An exponent is the slope of log time against log size by least squares, over the upper
part of the range, where what is constant no longer counts. Sizes are timed in turn, so that a busy machine slows all alike.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import process_time

import torch
from torch import nn

import nngeo
from benchmarks.networks import mlp, random_inputs
from nngeo import FIM, LayerCollection, random_pvector
from nngeo_core.plugins import registry

Run = Callable[[], object]


@dataclass(frozen=True)
class Growth:
    """An operation at several sizes.

    Attributes:
        title: What grows with what.
        sizes: From small to large.
        prepare: Makes what is timed at a size.
        least: The exponent expected, from `least` to `most`.
        most: See `least`.
        fitted: How many of the largest sizes the exponent is fitted to.
    """

    title: str
    sizes: tuple[int, ...]
    prepare: Callable[[int], Run]
    least: float
    most: float
    fitted: int = 3


def deep(depth: int) -> nn.Module:
    """Hidden layers of width 128 that keep the scale of what passes: vanishing gradients are slow, being subnormal numbers."""
    model = mlp(128, *[128] * depth, 10)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model


def product_by_outputs(c: int) -> Run:
    """F v for c classes, with hidden layers that outweigh the last."""
    model, x = mlp(256, 1024, 1024, c), random_inputs(128, 256)
    layers = LayerCollection.from_model(model)
    generator, v = registry.generator("hooks")(model, "classif_logits", layer_collection=layers), random_pvector(layers)
    return lambda: generator.product(v, x)


def gram_by_examples(n: int) -> Run:
    """The kernel of n examples."""
    model, x = mlp(256, 256, 10), random_inputs(n, 256)
    return lambda: nngeo.GramMatrix(model, x)


def kfac_by_examples(n: int) -> Run:
    """Both factors from n examples in batches of 64."""
    model, x = mlp(256, 256, 256, 10), random_inputs(n, 256)
    return lambda: FIM(model, [(part,) for part in x.split(64)], "kfac", 10)


def built_by_depth(representation: str) -> Callable[[int], Run]:
    """A build for a number of hidden layers."""

    def prepare(depth: int) -> Run:
        model, x = deep(depth), random_inputs(128, 128)
        return lambda: FIM(model, x, representation, 10)

    return prepare


def product_by_depth(depth: int) -> Run:
    """F v for a number of hidden layers."""
    model, x = deep(depth), random_inputs(128, 128)
    layers = LayerCollection.from_model(model)
    generator, v = registry.generator("hooks")(model, "classif_logits", layer_collection=layers), random_pvector(layers)
    return lambda: generator.product(v, x)


GROWTHS = [
    Growth("F v with outputs", (10, 30, 100, 300, 1000), product_by_outputs, -0.2, 0.35, 5),
    Growth("Gram matrix with examples", (64, 128, 256, 512, 1024), gram_by_examples, 1.5, 2.2),
    Growth("KFAC with examples", (256, 512, 1024, 2048, 4096), kfac_by_examples, 0.7, 1.1),
    Growth("F v with depth", (4, 8, 16, 32, 64), product_by_depth, 0.5, 1.1),
    Growth("diagonal with depth", (4, 8, 16, 32, 64), built_by_depth("diag"), 0.5, 1.1),
    Growth("KFAC with depth", (4, 8, 16, 32, 64), built_by_depth("kfac"), 0.5, 1.1),
]


def measured(growth: Growth, repetitions: int) -> list[float]:
    """The median processor time at each size."""
    torch.manual_seed(0)
    runs = [growth.prepare(size) for size in growth.sizes]
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repetitions):
        for run, seconds in zip(runs, times, strict=True):
            start = process_time()
            run()
            seconds.append(process_time() - start)
    return [median(seconds) for seconds in times]


def exponent(sizes: tuple[int, ...], seconds: list[float], fitted: int) -> float:
    """The slope of log time against log size over the largest sizes."""
    x = [math.log(size) for size in sizes[-fitted:]]
    y = [math.log(one) for one in seconds[-fitted:]]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def draw(found: list[tuple[Growth, list[float], float]], path: Path) -> None:
    """Time against size, logarithmic, with the fitted exponents."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5))
    for axis, (growth, seconds, slope) in zip(axes.flat, found, strict=False):
        axis.loglog(growth.sizes, seconds, "o-")
        last, time = growth.sizes[-1], seconds[-1]
        ends = [growth.sizes[-growth.fitted], last]
        axis.loglog(ends, [time * (size / last) ** slope for size in ends], "k--", label=f"exponent {slope:.2f}")
        axis.set_title(growth.title)
        axis.set_ylabel("seconds of processor time")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Print the table, write JSON and the plot, and fail where an exponent is out of its range."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/growth"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    found = []
    print("| cost | sizes | milliseconds | exponent | expected |\n|---|---|---|---|---|")
    for growth in GROWTHS:
        seconds = measured(growth, options.repetitions)
        slope = exponent(growth.sizes, seconds, growth.fitted)
        found.append((growth, seconds, slope))
        times = ", ".join(f"{1e3 * one:.0f}" for one in seconds)
        sizes = ", ".join(map(str, growth.sizes))
        print(f"| {growth.title} | {sizes} | {times} | {slope:.2f} | {growth.least} to {growth.most} |", flush=True)
    rows = [{"title": g.title, "sizes": g.sizes, "seconds": s, "exponent": e} for g, s, e in found]
    (options.out / "growth.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    draw(found, options.out / "growth.png")
    outside = [g.title for g, _, slope in found if not g.least <= slope <= g.most]
    if outside:
        raise SystemExit(f"out of range: {', '.join(outside)}")


if __name__ == "__main__":
    main()
