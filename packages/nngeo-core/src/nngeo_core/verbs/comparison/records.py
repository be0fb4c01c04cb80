"""The figures of a comparison, as plain numbers that JSON keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Agreement", "Average", "LayerTimes", "Measurement", "Reference"]


@dataclass(frozen=True)
class Average:
    """A mean over independent vectors.

    Attributes:
        mean: The mean.
        standard_error: That of the mean, s / sqrt(k) over k vectors; None of a single vector.
    """

    mean: float
    standard_error: float | None

    @classmethod
    def of(cls, values: Tensor) -> "Average | None":
        """The average of some values, shape (k,), or None if one of them is undefined (NaN) or overflowed.

        Example:
            >>> import torch
            >>> Average.of(torch.tensor([1.0, 3.0]))
            Average(mean=2.0, standard_error=1.0)
        """
        if not bool(values.isfinite().all()):
            return None
        exact = values.double()
        error = float(exact.std()) / len(values) ** 0.5 if len(values) > 1 else None
        return cls(float(exact.mean()), error)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any] | None) -> "Average | None":
        """The average that `dataclasses.asdict` made this of."""
        return None if given is None else cls(**given)


@dataclass(frozen=True)
class Agreement:
    """How well an approximation A agrees with the exact F, as a whole or within one layer; None is what could not be had.

    Attributes:
        trace_error: (tr A - tr F) / tr F.
        form_error: (v^T A v - v^T F v) / v^T F v.
        cosine: Of the angle between A v and F v.
        solve_cosines: For each damping r, of the angle between v' = (A + r I)^-1 (F + r I) v and v.
        solve_residuals: For each damping r, |v - v'| / |v|.
    """

    trace_error: float | None
    form_error: Average | None
    cosine: Average | None
    solve_cosines: tuple[Average | None, ...]
    solve_residuals: tuple[Average | None, ...]

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Agreement":
        """The agreement that `dataclasses.asdict` made this of."""
        return cls(
            given["trace_error"],
            Average.from_dict(given["form_error"]),
            Average.from_dict(given["cosine"]),
            _averages(given["solve_cosines"]),
            _averages(given["solve_residuals"]),
        )


def _averages(given: Sequence[Mapping[str, Any] | None]) -> tuple[Average | None, ...]:
    return tuple(Average.from_dict(one) for one in given)


@dataclass(frozen=True)
class LayerTimes:
    """Seconds that a representation of one layer alone takes; None is what could not be had.

    Attributes:
        build_seconds: From the examples to the finished matrix, with the whole model's forward pass in it.
        mv_seconds: Of a product with one vector.
        first_solve_seconds: Of the first solve, with what is factored once for all.
        solve_seconds: Of a solve after that one.
    """

    build_seconds: float | None
    mv_seconds: float | None
    first_solve_seconds: float | None
    solve_seconds: float | None


@dataclass(frozen=True)
class Measurement:
    """One representation, measured.

    Attributes:
        total: Agreement of the whole matrices.
        layers: Agreement of each layer's diagonal block with that of F, by layer id; empty if they were not measured.
        layer_times: What each layer takes alone, by layer id; empty if that was not asked for.
        layer_bytes: What each layer's share of the matrix takes, by layer id, as far as the representation says.
        stored_bytes: What the finished matrix takes, with nothing computed from it yet; None if it could not be built.
        peak_bytes: By how much memory grew at most while it was built; None where that cannot be told.
        build_seconds: From the examples to the finished matrix.
        mv_seconds: Of a product with one vector, the median.
        first_solve_seconds: Of the first solve, with what is factored once for all.
        solve_seconds: Of a solve after that one, the median.
        unavailable: What could not be had, and why, by name of the operation.
    """

    total: Agreement
    layers: dict[str, Agreement]
    layer_times: dict[str, LayerTimes]
    layer_bytes: dict[str, int]
    stored_bytes: int | None
    peak_bytes: int | None
    build_seconds: float | None
    mv_seconds: float | None
    first_solve_seconds: float | None
    solve_seconds: float | None
    unavailable: dict[str, str]

    @property
    def built(self) -> bool:
        """Whether there was a matrix to measure."""
        return self.stored_bytes is not None

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Measurement":
        """The measurement that `dataclasses.asdict` made this of."""
        layers = {layer_id: Agreement.from_dict(one) for layer_id, one in given["layers"].items()}
        times = {layer_id: LayerTimes(**one) for layer_id, one in given["layer_times"].items()}
        total = Agreement.from_dict(given["total"])
        return cls(**{**given, "total": total, "layers": layers, "layer_times": times})


@dataclass(frozen=True)
class Reference:
    """The exact F, without a matrix.

    Attributes:
        trace: tr F.
        form: v^T F v.
        trace_per_layer: The trace of each layer's diagonal block, by layer id.
        mv_seconds: Of the product with one vector, the median.
    """

    trace: float
    form: Average
    trace_per_layer: dict[str, float]
    mv_seconds: float

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Reference":
        """The reference that `dataclasses.asdict` made this of."""
        form = Average.from_dict(given["form"])
        assert form is not None
        return cls(**{**given, "form": form})
