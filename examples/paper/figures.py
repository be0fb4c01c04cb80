"""Figures 3 to 7 of the paper, and the numbers behind them as Markdown."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from torch import Tensor

from nngeo import KernelPCA, KernelSnapshot, RepresentationComparison, plot_evolution, plot_gram, plot_kernel_pca

from .files import read_json, write

matplotlib.use("Agg")  # pictures go to files: no display is needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["draw_agreements", "draw_kernels", "draw_solves", "report"]


def draw_agreements(found: Mapping[str, RepresentationComparison], folder: Path) -> None:
    """Figures 4, 5 and 6: cosine of F v, relative differences of v^T F v and of the trace, along training."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    drawn: dict[str, Callable[[Any], tuple[float, float] | None]] = {
        "cosine of $F v$ and $A v$": lambda one: _pair(one.cosine),
        "relative difference of $v^T F v$": lambda one: _pair(one.form_error),
        "relative difference of the trace": lambda one: None if one.trace_error is None else (one.trace_error, 0.0),
    }
    for ax, (title, figure_of) in zip(axes, drawn.items(), strict=True):
        for label in next(iter(found.values())).measurements:
            points = [figure_of(one.measurements[label].total) for one in found.values()]
            _line(ax, range(len(points)), points, label)
        ax.set_xticks(range(len(found)), list(found))
        ax.set_title(title, fontsize="medium")
    axes[0].legend()
    _save(figure, folder / "figures-4-5-6.png")


def draw_solves(found: Mapping[str, RepresentationComparison], folder: Path) -> None:
    """Figure 3: residual and cosine of v' = (A + r I)^-1 (F + r I) v over r, a column for each state."""
    figure, axes = plt.subplots(
        2, len(found), figsize=(1 + 2.8 * len(found), 5), sharey="row", squeeze=False, layout="constrained"
    )
    for (point, one), (above, below) in zip(found.items(), axes.T, strict=True):
        for label, measurement in one.measurements.items():
            _line(above, one.dampings, [_pair(part) for part in measurement.total.solve_residuals], label)
            _line(below, one.dampings, [_pair(part) for part in measurement.total.solve_cosines], label)
        above.set_title(point)
        above.set_yscale("log")
        for ax in (above, below):
            ax.set_xscale("log")
        below.set_xlabel("r")
    axes[0, 0].set_ylabel("$|v - v'| / |v|$")
    axes[1, 0].set_ylabel("cosine of $v$ and $v'$")
    axes[1, 0].legend()
    _save(figure, folder / "figure-3.png")


def draw_kernels(points: Sequence[str], found: Sequence[KernelSnapshot], labels: Tensor, folder: Path) -> None:
    """Figure 7: Gram matrices over kernel principal components; and the alignments."""
    figure, axes = plt.subplots(2, len(found), figsize=(2.4 * len(found), 5), squeeze=False, layout="constrained")
    for point, one, (above, below) in zip(points, found, axes.T, strict=True):
        plot_gram(one.kernel, labels, above).set_title(point)
        plot_kernel_pca(KernelPCA(one.kernel), labels, below)
    _save(figure, folder / "figure-7.png")
    figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    plot_evolution(found, ax=ax).set_xticks(range(len(points)), points)
    _save(figure, folder / "alignment.png")


def _pair(average: Any) -> tuple[float, float] | None:
    """Mean and standard error."""
    return None if average is None else (average.mean, average.standard_error or 0.0)


def _line(ax: Axes, places: Sequence[float], values: Sequence[tuple[float, float] | None], label: str) -> None:
    """Dashed for the second of two representations that are often nearly equal, so that the first one shows."""
    known = [(place, *value) for place, value in zip(places, values, strict=True) if value is not None]
    xs, means, errors = zip(*known, strict=True) if known else ((), (), ())
    style = "--" if label in ("quasidiag", "ekfac") else "-"
    ax.errorbar(xs, means, yerr=errors, label=label, linestyle=style, marker="o", markersize=3, capsize=2)


def _save(figure: Figure, path: Path) -> None:
    write(path, lambda place: figure.savefig(place, dpi=80, format="png"))
    plt.close(figure)


def report(found: Mapping[str, RepresentationComparison], kernels: Mapping[str, KernelSnapshot], folder: Path) -> str:
    """All numbers as Markdown: a section for each state, the kernels, and what the stages took."""
    parts = [f"## {point}\n\n{one.to_markdown(per_layer=False)}" for point, one in found.items()]
    if kernels:
        rows = [
            f"| {point} | {float(one.target_alignment or 0):.3f} | {float(one.first_alignment):.3f} "
            f"| {float(one.effective_rank):.1f} |"
            for point, one in kernels.items()
        ]
        header = [
            "| state | alignment with the classes | with the first kernel | effective rank |",
            "|---|---:|---:|---:|",
        ]
        parts.append("\n".join(["## Kernels\n", *header, *rows]) + "\n")
    costs = [
        f"| {stage} | {one['seconds']:.0f} | {one['processor_seconds']:.0f} | {one['largest_memory_gib']:.1f} |"
        for stage, one in read_json(folder / "costs.json").items()
    ]
    header = ["| stage | seconds | processor seconds | largest memory so far, GiB |", "|---|---:|---:|---:|"]
    return "\n".join([*parts, "## Costs\n", *header, *costs]) + "\n"
