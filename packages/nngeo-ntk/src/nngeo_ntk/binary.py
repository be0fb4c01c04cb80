"""One number for each example: class against class."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from nngeo_core.errors import ShapeError
from nngeo_core.sweep.examples import call_model

__all__ = ["binary_function"]


def binary_function(
    model: nn.Module, first: int, second: int, function: Callable[..., Any] | None = None
) -> Callable[..., Tensor]:
    """x -> f(x)_second - f(x)_first, shape (n, 1): a classifier of one class against another, whose kernel is n x n.

    It is what George (2021, section 3.2) plots the kernel of; pass it as `function=` to `GramMatrix`.

    Args:
        model: Returns outputs (n, classes).
        first: The class that counts as negative.
        second: The class that counts as positive.
        function: Maps a batch to outputs; None calls the model.

    Raises:
        ValueError: The classes are equal or negative.

    Example:
        >>> import torch
        >>> model = nn.Identity()
        >>> binary_function(model, 0, 2)(torch.tensor([[1.0, 5.0, 4.0]]))
        tensor([[3.]])
    """
    if first == second or min(first, second) < 0:
        raise ValueError(f"a binary function takes two different classes, 0 or more; got {first} and {second}")

    def difference(*batch: Any) -> Tensor:
        outputs = call_model(model, function, batch if len(batch) > 1 else batch[0])
        if outputs.ndim != 2 or outputs.shape[1] <= max(first, second):
            raise ShapeError(
                f"classes {first} and {second} of outputs of shape {tuple(outputs.shape)}: expected (n, classes) with more "
                f"than {max(first, second)} of them"
            )
        return outputs[:, second : second + 1] - outputs[:, first : first + 1]

    return difference
