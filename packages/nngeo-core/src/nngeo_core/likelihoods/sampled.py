"""Metrics estimated by draws that belong to the examples: Monte Carlo targets, and random signs of positions."""

import math
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.categorical import Categorical
from nngeo_core.likelihoods.draws import fresh_seed, uniform
from nngeo_core.likelihoods.positions import CausalLMLogits, SegmentationLogits
from nngeo_core.likelihoods.targets import digests
from nngeo_core.likelihoods.wrapped import Wrapped

__all__ = ["CausalLMRandomSigns", "MonteCarlo", "RandomSigns", "SegmentationRandomSigns"]


class MonteCarlo(Wrapped):
    """L estimated by targets drawn from the model: (1/t) sum_k s_k s_k^T, s_k the gradient of log p(y_k | outputs).

    It is unbiased, and its error falls as 1/sqrt(t); positions are drawn independently, so an example takes t directions
    however many it has. The draws are a function of `seed` and of the example's content: every pass and product sees the
    same ones, in whatever order the examples come, and equal examples get equal draws.

    Args:
        inner: What the outputs mean; it must be able to `sample`.
        trials: t, draws for each example.
        seed: Chooses the draws.
    """

    name = "monte_carlo"
    seed: int

    def __init__(self, inner: Likelihood, trials: int = 1, seed: int = 0) -> None:
        if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
            raise ValueError(f"trials is how many targets to draw for each example, at least 1; got {trials!r}")
        super().__init__(inner)
        self.trials = trials
        self.seed = seed

    def targets(self, examples: Any) -> Tensor:
        """A number for each example that its draws start from."""
        return digests(examples)

    def n_directions(self, outputs: Tensor, targets: Any = None) -> int:
        """One direction for each draw."""
        return self.trials

    def directions(self, outputs: Tensor, targets: Any, chosen: slice) -> Tensor:
        """s_k / sqrt(t) for the chosen draws k, shape (k, *outputs)."""
        shape = self.inner.draws_shape(outputs)
        scores = []
        for k in range(chosen.start, chosen.stop):
            numbers = uniform(targets, self.seed, shape, k * math.prod(shape), self.stream)
            scores.append(self.inner.score(outputs, self.inner.sample(outputs, numbers)))
        return torch.stack(scores) / math.sqrt(self.trials)


class RandomSigns(Wrapped):
    """L of K classes at T positions estimated from K - 1 directions, where the exact one takes T (K - 1).

    Direction k is column k of the square root at every position at once, times a random sign for each position: the terms
    between two positions, which L does not have, are zero in expectation. An estimate, unbiased, whose signs are a function of
    `seed` and of the example's content.

    Args:
        inner: A categorical likelihood over positions.
        seed: Chooses the signs; None takes one from the operating system.
    """

    name = "random_signs"
    inner: Categorical
    seed: int

    def __init__(self, inner: Categorical, seed: int | None = None) -> None:
        if not isinstance(inner, Categorical):
            raise UnsupportedOperationError(
                f"random signs are for categorical likelihoods over positions, got {type(inner).__name__}"
            )
        super().__init__(inner)
        self.seed = fresh_seed() if seed is None else seed

    def targets(self, examples: Any) -> Tensor:
        """A number for each example that its signs start from."""
        return digests(examples)

    def n_directions(self, outputs: Tensor, targets: Any = None) -> int:
        """One direction for each column of the square root of a position's metric."""
        return self.inner.n_columns(self.inner.n_output(outputs))

    def directions(self, outputs: Tensor, targets: Any, chosen: slice) -> Tensor:
        """The chosen columns, shape (k, *outputs)."""
        rows = self.inner.rows(outputs)
        n, positions, classes = rows.shape
        signs = (uniform(targets, self.seed, (positions,), stream=self.stream) < 0.5).to(rows.dtype) * 2 - 1
        k = torch.arange(chosen.start, chosen.stop, device=outputs.device)
        columns = self.inner.columns(rows.reshape(n * positions, 1, classes), k)
        return self.inner.unrow(columns.view(len(k), n, positions, classes) * signs.unsqueeze(-1), outputs)


class SegmentationRandomSigns(RandomSigns):
    """`RandomSigns` of `SegmentationLogits`."""

    name = "segmentation_logits_random_signs"

    def __init__(self, ignore_index: int = -100, seed: int | None = None) -> None:
        super().__init__(SegmentationLogits(ignore_index), seed)


class CausalLMRandomSigns(RandomSigns):
    """`RandomSigns` of `CausalLMLogits`."""

    name = "causal_lm_logits_random_signs"

    def __init__(self, ignore_index: int = -100, seed: int | None = None) -> None:
        super().__init__(CausalLMLogits(ignore_index), seed)
