"""The tables of a comparison, as text and as Markdown."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from nngeo_core.layers.overview import aligned
from nngeo_core.verbs.comparison.records import Agreement, Average, Measurement

if TYPE_CHECKING:
    from nngeo_core.verbs.comparison.result import RepresentationComparison

__all__ = ["Table", "as_markdown", "as_text", "tables"]


_REFUSED = "Not available"


@dataclass(frozen=True)
class Table:
    """A title and rows of cells, the first one the header."""

    title: str
    rows: list[tuple[str, ...]]


def tables(comparison: "RepresentationComparison", per_layer: bool) -> list[Table]:
    """What is shown of a comparison.

    Args:
        comparison: The comparison.
        per_layer: Whether to add a table of layers for each representation.
    """
    measurements, dampings = comparison.measurements, comparison.dampings
    totals = {label: one.total for label, one in measurements.items()}
    found = [
        Table(
            "Relative errors of the trace and of v^T F v (approximate minus true, over true), and cosine of F v",
            [
                ("representation", "trace", "v^T F v", "cosine of F v"),
                *(
                    (label, _signed(one.trace_error), _average(one.form_error, "+"), _average(one.cosine))
                    for label, one in totals.items()
                ),
            ],
        ),
        _by_damping("Residual |v - v'| / |v| of v' = (A + r I)^-1 (F + r I) v", totals, dampings, "solve_residuals"),
        _by_damping("Cosine of v' and v", totals, dampings, "solve_cosines"),
        _costs(comparison),
    ]
    if per_layer:
        found += [_of_layers(label, one, comparison) for label, one in measurements.items() if one.layers]
    refused = [(label, name, reason) for label, one in measurements.items() for name, reason in one.unavailable.items()]
    if refused:
        found.append(Table(_REFUSED, [("representation", "operation", "reason"), *refused]))
    return found


def as_text(table: Table) -> str:
    """Columns beneath each other, numbers to the right."""
    right = set() if table.title == _REFUSED else set(range(1, len(table.rows[0])))
    return "\n".join([table.title, *aligned(table.rows, right)])


def as_markdown(table: Table) -> str:
    """A heading and a pipe table."""
    as_numbers = table.title != _REFUSED
    header, *rows = [[cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in table.rows]
    lines = [header, ["---", *["---:" if as_numbers else "---"] * (len(header) - 1)], *rows]
    return "\n".join([f"### {table.title}", "", *(f"| {' | '.join(line)} |" for line in lines)])


def _by_damping(title: str, totals: dict[str, Agreement], dampings: Sequence[float], figure: str) -> Table:
    header = ("representation", *(f"r = {r:.3g}" for r in dampings))
    return Table(title, [header, *((label, *map(_average, getattr(one, figure))) for label, one in totals.items())])


def _costs(comparison: "RepresentationComparison") -> Table:
    header = ("representation", "build", "mv", "first solve", "solve", "stored", "peak of building")
    rows = [
        (
            label,
            *map(_seconds, (one.build_seconds, one.mv_seconds, one.first_solve_seconds, one.solve_seconds)),
            _bytes(one.stored_bytes),
            _bytes(one.peak_bytes),
        )
        for label, one in comparison.measurements.items()
    ]
    exact = ("(exact F v)", "-", _seconds(comparison.reference.mv_seconds), "-", "-", "-", "-")
    return Table("Time of one operation, and memory", [header, *rows, exact])


def _of_layers(label: str, measurement: Measurement, comparison: "RepresentationComparison") -> Table:
    """The agreement of a representation's blocks, solves at the middle damping, and what was timed."""
    middle = len(comparison.dampings) // 2
    r = f"r = {comparison.dampings[middle]:.3g}"
    header = ["layer", "parameters", "stored", "trace", "v^T F v", "cosine of F v", f"residual, {r}", f"cosine, {r}"]
    timed = ["build", "mv", "first solve", "solve"] if measurement.layer_times else []
    rows = []
    for layer_id, one in measurement.layers.items():
        times = astuple(measurement.layer_times[layer_id]) if timed else ()
        row = [layer_id or "''", str(comparison.layer_sizes[layer_id]), _bytes(measurement.layer_bytes.get(layer_id))]
        row += [_signed(one.trace_error), _average(one.form_error, "+"), _average(one.cosine)]
        row += [_average(one.solve_residuals[middle]), _average(one.solve_cosines[middle])]
        rows.append((*row, *map(_seconds, times)))
    return Table(f"Within layers: {label}", [(*header, *timed), *rows])


def _signed(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.3g}"


def _average(average: Average | None, sign: str = "") -> str:
    if average is None:
        return "n/a"
    error = "" if average.standard_error is None else f" ± {average.standard_error:.1g}"
    return f"{average.mean:{sign}.4g}{error}"


def _seconds(seconds: float | None) -> str:
    return "n/a" if seconds is None else f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _bytes(size: int | None) -> str:
    return "n/a" if size is None else f"{size / 2**20:.3g} MiB" if size >= 2**20 else f"{size / 2**10:.3g} KiB"
