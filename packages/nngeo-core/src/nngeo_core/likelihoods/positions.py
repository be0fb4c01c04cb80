"""Categorical likelihoods over positions: pixels of a segmentation, tokens of a causal language model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import ShapeError
from nngeo_core.likelihoods.categorical import IGNORED, Categorical
from nngeo_core.likelihoods.targets import targets_of

__all__ = ["CausalLMLogits", "SegmentationLogits"]


class SegmentationLogits(Categorical):
    """A class for each pixel: outputs (n, classes, *positions), the pixels independent given the image.

    F is averaged over images and summed over pixels. Where a batch has targets (n, *positions), pixels whose label is
    `ignore_index` are left out.

    Args:
        ignore_index: The label of the pixels to leave out.

    Example:
        >>> outputs = torch.zeros(1, 2, 3)
        >>> SegmentationLogits().n_directions(outputs)
        3
        >>> SegmentationLogits(255).position_mask((outputs, torch.tensor([[0, 255, 1]])))
        tensor([[ True, False,  True]])
    """

    name = "segmentation_logits"
    class_axis = 1

    def __init__(self, ignore_index: int = IGNORED) -> None:
        self.ignore_index = ignore_index

    def check(self, outputs: Tensor) -> None:
        """Outputs are (n, classes, *positions).

        Raises:
            ShapeError: They are not, or there is one class.
        """
        if outputs.ndim < 3 or outputs.shape[1] < 2:
            raise ShapeError(
                f"variant '{self.name}' expects outputs of shape (n, classes, *positions) with two classes at least, got "
                f"{tuple(outputs.shape)}; 'classif_logits' takes (n, classes), 'multilabel_logits' one logit for each pixel, "
                "(n, pixels)"
            )

    def position_mask(self, examples: Any) -> Tensor | None:
        """Where the label is not `ignore_index`; None without targets."""
        try:
            labels = targets_of(examples)
        except ValueError:
            return None
        return labels.flatten(1) != self.ignore_index if isinstance(labels, Tensor) else None

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """e_y - p at each pixel; ignored ones must be masked."""
        return super().score(outputs, y.masked_fill(y == self.ignore_index, IGNORED))


class CausalLMLogits(Categorical):
    """The next token of a sequence: outputs (n, T, vocabulary), position t predicting token t + 1.

    F is averaged over sequences and summed over positions. Position t counts when token t + 1 exists, neither of the two is
    padding (`attention_mask`), and the label of token t + 1 (`labels`, or the second of a tuple) is not `ignore_index`.

    Args:
        ignore_index: The label of the tokens to leave out.

    Example:
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
        >>> CausalLMLogits().position_mask(batch)
        tensor([[ True,  True, False, False]])
    """

    name = "causal_lm_logits"
    class_axis = -1

    def __init__(self, ignore_index: int = IGNORED) -> None:
        self.ignore_index = ignore_index

    def check(self, outputs: Tensor) -> None:
        """Outputs are (n, T, vocabulary).

        Raises:
            ShapeError: They are not, or the vocabulary is one token.
        """
        if outputs.ndim != 3 or outputs.shape[2] < 2:
            raise ShapeError(
                f"variant '{self.name}' expects outputs of shape (n, T, vocabulary) with two tokens at least, got "
                f"{tuple(outputs.shape)}; 'classif_logits' takes (n, classes)"
            )

    def position_mask(self, examples: Any) -> Tensor:
        """Which positions have a next token that counts, shape (n, T).

        Raises:
            ShapeError: No tensor of the batch tells which tokens there are.
        """
        known = _token_flags(examples, self.ignore_index)
        if not known:
            raise ShapeError(
                f"variant '{self.name}' needs token numbers (n, T): a tensor, (tokens, labels), or a mapping with 'input_ids', "
                f"'attention_mask' or 'labels'; got {type(examples).__name__}"
            )
        return torch.stack([_before_next(flags, real) for flags, real in known]).all(0)

    def observed(self, examples: Any) -> Any:
        """The token after each position: labels, or the tokens themselves; `ignore_index` after the last."""
        if isinstance(examples, Mapping):
            labels = examples.get("labels", examples.get("input_ids"))
        else:
            labels = targets_of(examples) if isinstance(examples, tuple | list) else examples
        if not isinstance(labels, Tensor):
            raise ValueError(
                f"variant '{self.name}' needs 'labels' or 'input_ids' in the batch to know the next tokens"
            )
        return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=self.ignore_index)

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """e_y - p at each position; ignored ones must be masked."""
        return super().score(outputs, y.masked_fill(y == self.ignore_index, IGNORED))


def _token_flags(examples: Any, ignore_index: int) -> list[tuple[Tensor, bool]]:
    """Flags (n, T) of the tokens that count, each with whether it also tells which positions are no padding."""
    if isinstance(examples, Mapping):
        tokens, labels, padding = (examples.get(key) for key in ("input_ids", "labels", "attention_mask"))
    elif isinstance(examples, tuple | list):
        tokens, labels, padding = examples[0], examples[1] if len(examples) > 1 else None, None
    else:
        tokens, labels, padding = examples, None, None
    flags: list[tuple[Tensor, bool]] = []
    if isinstance(tokens, Tensor) and tokens.ndim > 1:
        flags.append((torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), True))
    if isinstance(labels, Tensor):
        flags.append((labels != ignore_index, False))
    if isinstance(padding, Tensor) and padding.ndim == 2:
        flags.append((padding != 0, True))
    return flags


def _before_next(flags: Tensor, real: bool) -> Tensor:
    """Whether the next token counts, and the position itself too if flags are about positions."""
    following = torch.nn.functional.pad(flags[:, 1:], (0, 1), value=False)
    return following & flags if real else following
