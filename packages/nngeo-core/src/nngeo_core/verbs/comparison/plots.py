"""Pictures of a comparison, as in figures 3 to 6 of the NNGeometry paper; matplotlib is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

from nngeo_core.verbs.comparison.records import Average, Measurement

__all__ = ["draw"]


def draw(measurements: Mapping[str, Measurement], dampings: Sequence[float], figure: Any = None) -> Any:
    """Trace, forms, products, memory and times as bars, solves as lines over r.

    Args:
        measurements: By label; what is not available is left out.
        dampings: The r of the solves.
        figure: Where to draw; None for a new figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plots need matplotlib; install it with: pip install 'nngeo-core[plots]'") from error
    if figure is None:
        figure = pyplot.figure(figsize=(14, 7), layout="constrained")
    (trace, form, cosine, memory), (residual, solve_cosine, times, legend) = figure.subplots(2, 4)
    totals = {label: one.total for label, one in measurements.items()}
    _bars(trace, {label: _single(one.trace_error) for label, one in totals.items()}, "relative error of the trace")
    _bars(form, {label: one.form_error for label, one in totals.items()}, "relative error of $v^T F v$")
    _bars(cosine, {label: one.cosine for label, one in totals.items()}, "cosine of $F v$ and $A v$")
    stored = {label: one.stored_bytes for label, one in measurements.items()}
    _bars(memory, {label: _single(size and size / 2**20) for label, size in stored.items()}, "MiB stored")
    _lines(residual, {label: one.solve_residuals for label, one in totals.items()}, dampings, "$|v - v'| / |v|$")
    _lines(
        solve_cosine, {label: one.solve_cosines for label, one in totals.items()}, dampings, "cosine of $v$ and $v'$"
    )
    _times(times, measurements)
    legend.axis("off")
    legend.legend(*residual.get_legend_handles_labels(), loc="center")
    return figure


def _single(value: float | None) -> Average | None:
    return None if value is None else Average(value, None)


def _bars(ax: Any, averages: Mapping[str, Average | None], title: str) -> None:
    known = {place: one for place, one in enumerate(averages.values()) if one is not None}
    colors = [f"C{place}" for place in known]
    means, errors = [one.mean for one in known.values()], [one.standard_error or 0.0 for one in known.values()]
    ax.bar(list(known), means, yerr=errors, color=colors, capsize=3)
    ax.axhline(0, color="black", linewidth=0.5)
    ax.set_xticks(range(len(averages)), list(averages), rotation=20, ha="right", fontsize="small")
    ax.set_title(title, fontsize="medium")


def _lines(ax: Any, curves: Mapping[str, Sequence[Average | None]], dampings: Sequence[float], title: str) -> None:
    for place, (label, averages) in enumerate(curves.items()):
        known = [(r, one) for r, one in zip(dampings, averages, strict=True) if one is not None]
        errors = [one.standard_error or 0.0 for _, one in known]
        style = {"label": label, "color": f"C{place}", "marker": "o", "markersize": 3, "capsize": 2}
        ax.errorbar([r for r, _ in known], [one.mean for _, one in known], yerr=errors, **style)
    ax.set_xscale("log" if min(dampings) > 0 else "symlog")
    ax.set_xlabel("r")
    ax.set_title(title, fontsize="medium")


def _times(ax: Any, measurements: Mapping[str, Measurement]) -> None:
    """Seconds of one operation."""
    names = ("build_seconds", "mv_seconds", "solve_seconds")
    for place, (label, one) in enumerate(measurements.items()):
        known = [(k, getattr(one, name)) for k, name in enumerate(names) if getattr(one, name) is not None]
        offset = (place - (len(measurements) - 1) / 2) * 0.8 / len(measurements)
        width = 0.8 / len(measurements)
        ax.bar([k + offset for k, _ in known], [seconds for _, seconds in known], width, color=f"C{place}", label=label)
    ax.set_yscale("log")
    ax.set_xticks(range(len(names)), ["build", "mv", "solve"])
    ax.set_title("seconds of one operation", fontsize="medium")
