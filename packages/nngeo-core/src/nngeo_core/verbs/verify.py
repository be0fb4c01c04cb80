"""verify: compare what the library computes for a model with plain autograd, entry by entry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nngeo_core.errors import NNGeoError, UnsupportedOperationError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.matrices.pmat import PMat
from nngeo_core.plugins import registry
from nngeo_core.sweep.examples import Batch, count_examples, move_batch, select_examples
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.untouched import undisturbed
from nngeo_core.vectors.pvector import PVector
from nngeo_core.verbs.fim import FIM
from nngeo_core.verbs.sampled_entries import sample_places, sampled_fisher
from nngeo_core.verbs.sampled_kronecker import sampled_kronecker

__all__ = ["Verification", "verify"]

LARGEST_DENSE = 4096
"""Parameters up to which a dense matrix is computed unasked."""


@dataclass(frozen=True)
class Verification:
    """What was compared, and how well it agreed.

    Attributes:
        n_examples: Examples compared.
        entries: Entries compared of each representation, by name.
        errors: Largest difference of an entry from plain autograd, in units of the largest entry, by name.
        sampled: Entries that were sampled and that the representation is about, by name: more than `entries` where no
            formula is known for some layers (Kronecker factors of attention and recurrent cells).
    """

    n_examples: int
    entries: dict[str, int]
    errors: dict[str, float]
    sampled: dict[str, int]

    def __str__(self) -> str:
        """A table."""
        rows = [f"{'representation':<16}{'entries':>16}{'largest error':>16}"]
        for name, error in self.errors.items():
            some, count = self.entries[name], self.sampled[name]
            rows.append(f"{name:<16}{some if some == count else f'{some} of {count}':>16}{error:>16.1e}")
        return "\n".join([*rows, f"over {self.n_examples} examples"])


def verify(
    model: nn.Module,
    batch: Batch,
    variant: str | Likelihood = "classif_logits",
    representations: Sequence[str] | None = None,
    function: Callable[..., Any] | None = None,
    layer_collection: LayerCollection | None = None,
    coordinates: int = 32,
    max_examples: int = 16,
) -> Verification:
    """Check a model before trusting its numbers: all trust checks, then sampled entries against plain autograd.

    The trust checks compare each layer's Jacobian with a plain gradient pass, two forward passes with each other, and an
    example alone with its batch. Then F = (1/n) sum_i J_i^T L_i J_i is computed for some parameters by one backward pass for
    each example and direction, and compared with the entries that a representation claims to hold exactly. KFAC's entries
    are compared with its formula, the factors of which come from autograd at the layers' outputs.

    Args:
        model: The network.
        batch: Some examples; the first `max_examples` are used.
        variant: The likelihood, as for `FIM`.
        representations: Registered names; None takes all whose entries are known and that can hold the model's layers, those
            that hold every entry only up to 4096 parameters.
        function: As for `FIM`.
        layer_collection: As for `FIM`.
        coordinates: How many parameters to sample (drawn with a fixed seed, among those with `requires_grad`).
        max_examples: How many examples to use.

    Raises:
        UnsupportedLayerError: A trust check fails; names the module.
        NNGeoError: An entry differs from plain autograd by more than rounding, relative to the largest entry: 100 eps^0.75 of
            the matrices' dtype, or 4 eps of the model's where that is more.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> report = verify(model, torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        >>> report.entries["dense"], report.entries["kfac"]
        (81, 81)
    """
    layers = LayerCollection.from_model(model) if layer_collection is None else layer_collection
    batch = select_examples(batch, slice(0, max_examples))
    matrices = _computed(representations, layers, lambda names: FIM(
        model, batch, names, None, variant, None, function, layers, False, None, "every-batch"
    ))  # fmt: skip
    known = _Entries(next(iter(matrices.values())), batch, coordinates)
    pairs = {name: known.pair(matrix) for name, matrix in matrices.items()}
    report = Verification(
        count_examples(batch),
        {name: int((~expected.isnan()).sum()) for name, (_, expected) in pairs.items()},
        {name: _error(*pair) for name, pair in pairs.items()},
        {name: found.numel() for name, (found, _) in pairs.items()},
    )
    computed = max(torch.finfo(parameter.dtype).eps for _, parameter in layers.named_parameters(model))
    limit = max(100 * torch.finfo(next(iter(matrices.values())).dtype).eps ** 0.75, 4 * computed)
    if not max(report.errors.values()) <= limit:
        raise NNGeoError(f"entries differ from plain autograd by more than {limit:.0e} of the largest one:\n{report}")
    return report


def _computed(
    representations: Sequence[str] | None, layers: LayerCollection, compute: Callable[[Sequence[str]], list[PMat]]
) -> dict[str, PMat]:
    """The matrices to compare, by name."""
    names = _known_kinds(layers) if representations is None else list(representations)
    try:
        return dict(zip(names, compute(names), strict=True))
    except UnsupportedOperationError:  # a layer has another structure than its rule foresaw
        if representations is not None:
            raise
        names = [name for name in names if registry.representation(name).exact_entries != "kronecker"]
        return dict(zip(names, compute(names), strict=True))


def _known_kinds(layers: LayerCollection) -> list[str]:
    """Registered representations of which entries are known, and that can hold the layers without burden."""
    kinds = {name: registry.representation(name) for name in registry.names("representations")}
    return [name for name, kind in kinds.items() if kind.exact_entries and _can_hold(kind, layers)]


def _can_hold(kind: type[PMat], layers: LayerCollection) -> bool:
    if kind.exact_entries == "kronecker":
        numbers = kind.stored_numbers(layers)
        return isinstance(numbers, int) or all(numbers.get(layer_id) is not None for layer_id in layers)
    sizes = [layer.numel() for layer in layers.values()]
    largest = {"all": sum(sizes), "blocks": max(sizes, default=0)}
    return largest.get(kind.exact_entries, 0) <= LARGEST_DENSE


class _Entries:
    """Entries between sampled parameters, as plain autograd gives them.

    Args:
        matrix: Any matrix of the model, for its generator.
        batch: The examples that it was computed from.
        coordinates: How many parameters to sample.
    """

    def __init__(self, matrix: PMat, batch: Batch, coordinates: int) -> None:
        assert matrix.generator is not None
        self._generator = matrix.generator
        self._batch = move_batch(batch, matrix.generator.device)
        self._layers = matrix.layer_collection
        self._places = sample_places(matrix.generator, coordinates)
        self._fisher = self._compute(sampled_fisher)

    def pair(self, matrix: PMat) -> tuple[Tensor, Tensor]:
        """The entries that a matrix claims to hold, and what they should be; NaN where that is not known.

        Raises:
            NNGeoError: It claims none.
        """
        if matrix.exact_entries == "diagonal":
            return matrix.get_diag()[self._places], self._fisher.diagonal()
        if matrix.exact_entries == "all":
            return self._columns(matrix), self._fisher
        ends = torch.tensor([span.stop for span in self._layers.slices().values()], device=self._places.device)
        layer = torch.searchsorted(ends, self._places, right=True)
        inside = layer[:, None] == layer
        if matrix.exact_entries == "blocks":
            return self._columns(matrix)[inside], self._fisher[inside]
        if matrix.exact_entries == "kronecker":
            return self._columns(matrix)[inside], self._compute(sampled_kronecker)[inside]
        raise NNGeoError(
            f"{type(matrix).__name__} holds no entry of F exactly, nor by a formula that is known here: there is nothing to "
            "compare with autograd"
        )

    def _compute(self, entries: Callable[[Generator, Batch, Tensor], Tensor]) -> Tensor:
        with undisturbed(self._generator.model, self._generator.device):
            return entries(self._generator, self._batch, self._places)

    def _columns(self, matrix: PMat) -> Tensor:
        """M between the sampled parameters, by products with unit vectors."""
        units = torch.zeros(len(self._places), self._layers.numel(), dtype=matrix.dtype, device=matrix.device)
        units[torch.arange(len(units), device="cpu"), self._places] = 1
        products = [matrix.mv(PVector(self._layers, unit)).get_flat_representation() for unit in units]
        return torch.stack(products, 1)[self._places]


def _error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest entry; zero where nothing is known."""
    known = ~expected.isnan()
    difference, scale = (found - expected)[known].abs(), expected[known].abs()
    if not len(scale):
        return 0.0
    return float(difference.max() / scale.max().clamp(min=torch.finfo(expected.dtype).tiny))
