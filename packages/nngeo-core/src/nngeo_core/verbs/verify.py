"""verify: compare what the library computes for a model with plain autograd, entry by entry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import NNGeoError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.matrices.pmat import PMat
from nngeo_core.plugins import registry
from nngeo_core.sweep.examples import Batch, count_examples, move_batch, select_examples
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.untouched import undisturbed
from nngeo_core.verbs.fim import FIM

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
    """

    n_examples: int
    entries: dict[str, int]
    errors: dict[str, float]

    def __str__(self) -> str:
        """A table."""
        rows = [f"{'representation':<16}{'entries':>8}{'largest error':>16}"]
        rows += [f"{name:<16}{self.entries[name]:>8}{error:>16.1e}" for name, error in self.errors.items()]
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
    each example and direction, and compared with the entries that a representation claims to hold exactly.

    Args:
        model: The network.
        batch: Some examples; the first `max_examples` are used.
        variant: The likelihood, as for `FIM`.
        representations: Registered names; None takes all that hold entries of F exactly, those that hold every entry only
            up to 4096 parameters.
        function: As for `FIM`.
        layer_collection: As for `FIM`.
        coordinates: How many parameters to sample (drawn with a fixed seed, among those with `requires_grad`).
        max_examples: How many examples to use.

    Raises:
        UnsupportedLayerError: A trust check fails; names the module.
        NNGeoError: An entry differs from plain autograd.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> report = verify(model, torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        >>> report.entries["dense"]
        81
    """
    layers = LayerCollection.from_model(model) if layer_collection is None else layer_collection
    names = _exact_kinds(layers) if representations is None else list(representations)
    batch = select_examples(batch, slice(0, max_examples))
    matrices: list[PMat] = FIM(model, batch, names, None, variant, None, function, layers, False, None, "every-batch")
    generator = matrices[0].generator
    assert generator is not None
    chosen, expected = _sampled_fisher(generator, move_batch(batch, generator.device), coordinates)
    errors, entries = {}, {}
    for name, matrix in zip(names, matrices, strict=True):
        found, wanted = _comparable(matrix, chosen, expected)
        errors[name] = float(
            (found - wanted).abs().max() / expected.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
        )
        entries[name] = found.numel()
    report = Verification(count_examples(batch), entries, errors)
    limit = 100 * torch.finfo(matrices[0].dtype).eps ** 0.75
    if not max(errors.values()) <= limit:
        raise NNGeoError(f"entries differ from plain autograd by more than {limit:.0e} of the largest one:\n{report}")
    return report


def _exact_kinds(layers: LayerCollection) -> list[str]:
    """Registered representations that claim exact entries; all d^2 of them only where that is no burden."""
    kinds = {name: registry.representation(name).exact_entries for name in registry.names("representations")}
    return [name for name, exact in kinds.items() if exact and (exact != "all" or layers.numel() <= LARGEST_DENSE)]


def _comparable(matrix: PMat, chosen: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """The entries that a matrix claims to hold exactly, and what they should be."""
    if matrix.exact_entries == "all":
        return matrix.get_dense_tensor()[chosen][:, chosen], expected
    if matrix.exact_entries == "diagonal":
        return matrix.get_diag()[chosen], expected.diagonal()
    raise NNGeoError(f"{type(matrix).__name__} holds no entry of F exactly: there is nothing to compare with autograd")


def _sampled_fisher(generator: Generator, batch: Batch, coordinates: int) -> tuple[Tensor, Tensor]:
    """Places of some parameters in the flat vector, and F between them, from one backward pass a row."""
    parameters = [p for _, p in generator.layer_collection.named_parameters(generator.model)]
    flags = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in parameters])
    places = flags.nonzero()[:, 0]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))
    chosen = places[order[:coordinates]].sort().values.to(generator.device)
    with undisturbed(generator.model, generator.device):
        rows = [
            _rows(generator, select_examples(batch, slice(i, i + 1)), parameters, chosen)
            for i in range(count_examples(batch))
        ]
    stacked = torch.cat(rows)
    return chosen, stacked.T @ stacked / len(rows)


def _rows(generator: Generator, example: Batch, parameters: Sequence[nn.Parameter], chosen: Tensor) -> Tensor:
    """V^T J of one example at the chosen parameters, one row for each direction."""
    with torch.enable_grad():
        outputs = generator.outputs(example, 1)
    likelihood = generator.likelihood
    targets = likelihood.targets(example)
    fixed = outputs.detach()
    directions = likelihood.directions(fixed, targets, slice(0, likelihood.n_directions(fixed, targets)))
    trainable = [p for p in parameters if p.requires_grad]
    rows = []
    for direction in directions:
        found = iter(
            torch.autograd.grad(
                outputs, trainable, direction, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        )
        flat = torch.cat([(next(found) if p.requires_grad else torch.zeros_like(p)).flatten() for p in parameters])
        rows.append(flat[chosen].to(result_dtype(flat.dtype)))
    return torch.stack(rows)
