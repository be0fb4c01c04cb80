"""The comparison as Markdown, JSON and a picture."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import timing

Row = dict[str, Any]
"""Workload, operation, seconds of a gradient pass, and by library: ratio, runs, distance, note, peak in bytes."""


def machine() -> str:
    """The processor, its cores that are used, and torch's version."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {timing.clock} time, torch {torch.__version__}"


def cell(found: Row | None) -> str:
    """A ratio, or why there is none."""
    if found is None or found.get("ratio") is None:
        return "n/a"
    mark = "" if found["agrees"] else " (differs)"
    few = "" if found["runs"] >= 5 else "*"
    return f"{found['ratio']:.3g}{few}{mark}"


def times(rows: list[Row], libraries: list[str]) -> str:
    """Gradient passes, a row for each workload and operation."""
    lines = [
        f"| workload | operation | {' | '.join(libraries)} | floor | eigendecompositions | nngeo / floor |",
        f"|---|---|{'---|' * (len(libraries) + 3)}",
    ]
    for row in rows:
        cells = [cell(row["libraries"].get(title)) for title in libraries]
        bare, apart, ours = row.get("floor"), row.get("eigh", 0.0), row["libraries"].get("nngeo", {}).get("ratio")
        ends = [f"{bare:.3g}" if bare else "", f"{apart:.3g}" if apart else ""]
        ends.append(f"{(ours - apart) / bare:.2f}" if bare and ours else "")
        lines.append(f"| {row['workload']} | {row['operation']} | {' | '.join(cells + ends)} |")
    return "\n".join(lines)


def memory(rows: list[Row], libraries: list[str]) -> str:
    """Peak MiB, a row for each workload and operation measured."""
    lines = [f"| workload | operation | {' | '.join(libraries)} |", f"|---|---|{'---|' * len(libraries)}"]
    for row in rows:
        peaks = [row["libraries"].get(title, {}).get("peak") for title in libraries]
        if any(peaks):
            cells = [f"{found / 2**20:.0f}" if found else "n/a" for found in peaks]
            lines.append(f"| {row['workload']} | {row['operation']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def notes(rows: list[Row]) -> str:
    """Why something is not there, or differs."""
    lines = {}
    for row in rows:
        for title, found in row["libraries"].items():
            if found.get("ratio") is not None and not found["agrees"]:
                lines[f"{title}, {row['workload']}, {row['operation']}: differs by {found['distance']:.1g}"] = None
            elif found.get("note", "").startswith("raises"):
                lines[f"{title}, {row['workload']}, {row['operation']}: {found['note']}"] = None
    return "\n".join(f"- {line}" for line in lines)


def write(rows: list[Row], libraries: list[str], defects: list[Row], folder: Path) -> None:
    """Write `peers.md`, `peers.json` and `peers.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), "rows": rows, "defects": defects}
    (folder / "peers.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    parts = [
        "# Peers side by side",
        f"Machine: {machine()}. Gradient passes over the same data, medians; `*` fewer than five runs.",
        times(rows, libraries),
        "## Peak memory, MiB beyond what the process held before",
        memory(rows, libraries),
        "## Differences and refusals",
        notes(rows),
        "## Known defects of peers",
        "\n".join(f"- {one['peer']}: {one['what']}: {one['found']:.4g}, exactly {one['exact']:.4g}" for one in defects),
    ]
    (folder / "peers.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if rows:
        draw(rows, libraries, folder / "peers.png")


def draw(rows: list[Row], libraries: list[str], path: Path) -> None:
    """One panel for each workload: gradient passes of each operation and library, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = list(dict.fromkeys(row["workload"] for row in rows))
    columns = min(2, len(titles))
    figure, axes = plt.subplots(
        -(-len(titles) // columns), columns, figsize=(7 * columns, 3.2 * -(-len(titles) // columns)), squeeze=False
    )
    for axis in axes.flat[len(titles) :]:
        axis.set_axis_off()
    for axis, title in zip(axes.flat, titles, strict=False):
        here = [row for row in rows if row["workload"] == title]
        for number, library in enumerate(libraries):
            places = [i + 0.16 * (number - len(libraries) / 2) for i in range(len(here))]
            heights = [row["libraries"].get(library, {}).get("ratio") or float("nan") for row in here]
            axis.bar(places, heights, 0.15, label=library)
        bare = [row.get("floor") or float("nan") for row in here]
        axis.scatter(range(len(here)), bare, marker="_", s=500, color="black", label="floor", zorder=3)
        axis.set_yscale("log")
        axis.set_xticks(range(len(here)), [row["operation"] for row in here], rotation=25, ha="right")
        axis.set_title(title)
        axis.set_ylabel("gradient passes")
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
