"""Which representation to use, by a simple rule, and the reason in the same line."""

from collections.abc import Callable, Mapping, Sequence

from nngeo_core.verbs.comparison.records import Average, Measurement

__all__ = ["recommended"]


def recommended(measurements: Mapping[str, Measurement], dampings: Sequence[float]) -> str:
    """One line: what to use for products and for solves.

    Args:
        measurements: By label.
        dampings: The r of the solves; the middle one counts.
    """
    middle = len(dampings) // 2
    product = _best(measurements, lambda one: one.total.cosine, -1)
    solve = _best(measurements, lambda one: one.total.solve_residuals[middle], 1)
    if product is None and solve is None:
        return "Recommendation: none, since none of the representations has products or solves of this model."
    reasons = {}
    if product is not None:
        cosine = measurements[product].total.cosine
        assert cosine is not None
        reasons["products"] = (product, f"mean cosine with F v {cosine.mean:.3g}")
    if solve is not None:
        residual = measurements[solve].total.solve_residuals[middle]
        assert residual is not None
        reasons["solves"] = (solve, f"mean residual {residual.mean:.3g} at r = {dampings[middle]:.3g}")
    if product == solve:
        reason = " and ".join(text for _, text in reasons.values())
        return f"Recommendation: {product} for products and solves ({reason}; {_bytes(measurements[str(product)])})."
    uses = [f"{label} for {use} ({reason}; {_bytes(measurements[label])})" for use, (label, reason) in reasons.items()]
    return f"Recommendation: {', '.join(uses)}."


def _best(
    measurements: Mapping[str, Measurement], figure: Callable[[Measurement], Average | None], sign: int
) -> str | None:
    """The label of the least sign * mean; among those within one standard error of it, of the smallest matrix."""
    known = {label: found for label, one in measurements.items() if (found := figure(one)) is not None}
    if not known:
        return None
    best = min(known.values(), key=lambda average: sign * average.mean)
    reach = sign * best.mean + max(best.standard_error or 0.0, 1e-9)
    close = [label for label, average in known.items() if sign * average.mean <= reach]
    return min(close, key=lambda label: measurements[label].stored_bytes or 0)


def _bytes(measurement: Measurement) -> str:
    return f"stores {(measurement.stored_bytes or 0) / 2**20:.3g} MiB"
