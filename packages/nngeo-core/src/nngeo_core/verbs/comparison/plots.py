"""Pictures of a comparison, as in figures 3 to 6 of the NNGeometry paper; matplotlib is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

from nngeo_core.verbs.comparison.records import Average, Measurement

__all__ = ["draw"]


def draw(measurements: Mapping[str, Measurement], dampings: Sequence[float], figure: Any = None) -> Any:
    """Six panels: the trace, forms and products as bars, solves as lines over r, times and memory as bars.

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
        figure = pyplot.figure(figsize=(12, 7), layout="constrained")
    (trace, form, cosine), (residual, solve_cosine, cost) = figure.subplots(2, 3)
    totals = {label: one.total for label, one in measurements.items()}
    errors = {label: one.trace_error for label, one in totals.items()}
    averages = {label: None if error is None else Average(error, None) for label, error in errors.items()}
    _bars(trace, averages, "relative error of the trace")
    _bars(form, {label: one.form_error for label, one in totals.items()}, "relative error of $v^T F v$")
    _bars(cosine, {label: one.cosine for label, one in totals.items()}, "cosine of $F v$ and $A v$")
    _lines(residual, {label: one.solve_residuals for label, one in totals.items()}, dampings, "$|v - v'| / |v|$")
    _lines(
        solve_cosine, {label: one.solve_cosines for label, one in totals.items()}, dampings, "cosine of $v$ and $v'$"
    )
    _costs(cost, measurements)
    return figure


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
    ax.legend(fontsize="small")


def _costs(ax: Any, measurements: Mapping[str, Measurement]) -> None:
    """Seconds of one operation and stored bytes, each over its own axis."""
    names = ("build_seconds", "mv_seconds", "solve_seconds")
    for place, (label, one) in enumerate(measurements.items()):
        known = [(k, getattr(one, name)) for k, name in enumerate(names) if getattr(one, name) is not None]
        offset = (place - (len(measurements) - 1) / 2) * 0.8 / len(measurements)
        width = 0.8 / len(measurements)
        ax.bar([k + offset for k, _ in known], [seconds for _, seconds in known], width, color=f"C{place}", label=label)
    ax.set_yscale("log")
    ax.set_xticks(range(len(names)), ["build", "mv", "solve"])
    ax.set_ylabel("seconds")
    ax.set_title("time of one operation", fontsize="medium")
