"""RepresentationComparison: what `compare_representations` found."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nngeo_core.errors import StorageError
from nngeo_core.verbs.comparison.plots import draw
from nngeo_core.verbs.comparison.recommendation import recommended
from nngeo_core.verbs.comparison.records import Measurement, Reference
from nngeo_core.verbs.comparison.tables import as_markdown, as_text, tables

__all__ = ["RepresentationComparison"]

_FORMAT = 1


@dataclass(frozen=True)
class RepresentationComparison:
    """Representations measured against the exact matrix; prints as tables.

    Attributes:
        measurements: By label, in the order asked for.
        reference: The exact matrix's own numbers.
        dampings: The r of the solves, smallest first.
        layer_sizes: Number of parameters of each layer, by layer id.
        n_examples: Examples that F is averaged over.
        n_vectors: Random vectors that the figures are averaged over.
        likelihood: Name of the likelihood.
        trials: Targets drawn for each example; None of an exact F.
        seed: Of the drawn targets: `variant=MonteCarlo(likelihood, trials, seed)` is the same F again. None of an exact F.
        dtype: Of the matrices, such as "float32".
        device: Where they were.

    Example:
        >>> import torch
        >>> from nngeo_core import compare_representations
        >>> x = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
        >>> found = compare_representations(torch.nn.Linear(2, 3), x, ["diag", "dense"], vectors=5)
        >>> RepresentationComparison.from_json(found.to_json()) == found
        True
    """

    measurements: dict[str, Measurement]
    reference: Reference
    dampings: tuple[float, ...]
    layer_sizes: dict[str, int]
    n_examples: int
    n_vectors: int
    likelihood: str
    trials: int | None
    seed: int | None
    dtype: str
    device: str

    @property
    def recommendation(self) -> str:
        """What to use, and why, in one line.

        The rule: for products, the highest mean cosine of A v with F v; for solves, the smallest mean residual at the middle
        damping. What is within one standard error of the best is as good, and of those the one that stores least is named,
        of equal ones the first.
        """
        return recommended(self.measurements, self.dampings)

    def __str__(self) -> str:
        """Tables of the totals, what could not be had, and the recommendation."""
        return "\n\n".join([self._headline(), *map(as_text, tables(self, per_layer=False)), self.recommendation])

    def to_markdown(self, per_layer: bool = True) -> str:
        """The same as Markdown.

        Args:
            per_layer: Whether to add a table for each representation with a line for each layer.
        """
        parts = [self._headline(), *map(as_markdown, tables(self, per_layer)), f"**{self.recommendation}**"]
        return "\n\n".join(parts) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """All numbers in dictionaries, lists, texts and None, as JSON has them, and the recommendation."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"format": _FORMAT, **found, "recommendation": self.recommendation}

    def to_json(self) -> str:
        """`to_dict` as a text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "RepresentationComparison":
        """The comparison of which `to_dict` made this.

        Raises:
            StorageError: It was made of something else, or by a newer release.
        """
        if given.get("format") != _FORMAT:
            raise StorageError(
                f"not what `to_dict` of a comparison returns: its format is {given.get('format')!r}, expected {_FORMAT}"
            )
        kept = {name: value for name, value in given.items() if name not in ("format", "recommendation")}
        measurements = {label: Measurement.from_dict(one) for label, one in kept.pop("measurements").items()}
        reference, dampings = Reference.from_dict(kept.pop("reference")), tuple(kept.pop("dampings"))
        return cls(measurements, reference, dampings, **kept)

    @classmethod
    def from_json(cls, text: str) -> "RepresentationComparison":
        """The comparison of which `to_json` made this text.

        Raises:
            StorageError: It was made of something else, or by a newer release.
        """
        return cls.from_dict(json.loads(text))

    def plot(self, figure: Any = None) -> Any:
        """Draw the totals: trace, forms, products, and solves over r, each with its standard error, and memory and times.

        Args:
            figure: A matplotlib figure to draw in; None for a new one.

        Returns:
            The figure; `figure.savefig(path)` writes it.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return draw(self.measurements, self.dampings, figure)

    def _headline(self) -> str:
        drawn = "exact" if self.trials is None else f"{self.trials} draws for each example"
        return (
            f"{sum(self.layer_sizes.values())} parameters in {len(self.layer_sizes)} layers, {self.n_examples} examples, "
            f"{self.likelihood} ({drawn}), {self.n_vectors} vectors, {self.dtype} on {self.device}; "
            f"tr F = {self.reference.trace:.4g}, v^T F v = {self.reference.form.mean:.4g}"
        )
