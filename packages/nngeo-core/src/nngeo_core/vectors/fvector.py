"""FVector: vectors of the function space, one coordinate per output and example."""

from __future__ import annotations

import torch
from torch import Tensor

from nngeo_core.errors import ShapeError
from nngeo_core.vectors.arithmetic import Vector

__all__ = ["FVector", "random_fvector"]


class FVector(Vector):
    """A vector in function space, such as the outputs of a model at n examples.

    Args:
        vector_repr: Shape (c, n): outputs first, then examples.

    Raises:
        ValueError: If `vector_repr` is missing.
        ShapeError: If it does not have two dimensions.

    Example:
        >>> f = FVector(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> (2 * f - f).get_flat_representation(), f @ f
        (tensor([1., 2., 3., 4.]), tensor(30.))
    """

    def __init__(self, vector_repr: Tensor | None = None) -> None:
        if vector_repr is None:
            raise ValueError("FVector needs vector_repr, a tensor of shape (c, n); random_fvector(n, c) draws one")
        if vector_repr.ndim != 2:
            raise ShapeError(
                f"FVector needs a tensor of shape (c, n), outputs first, got {tuple(vector_repr.shape)}; for outputs "
                "of shape (n, c) pass outputs.T, for a single output outputs[None]"
            )
        self._tensors = (vector_repr,)

    @property
    def vector_repr(self) -> Tensor:
        """The coordinates, shape (c, n)."""
        return self._tensors[0]

    def get_flat_representation(self) -> Tensor:
        """The coordinates as a tensor of shape (c n,): row-major, all examples of output 0 first.

        Example:
            >>> FVector(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).get_flat_representation()
            tensor([1., 2., 3., 4.])
        """
        return self.vector_repr.reshape(-1)

    def size(self) -> torch.Size:
        """Number of outputs and of examples, (c, n)."""
        return self.vector_repr.shape

    def _aligned(self, other: FVector) -> tuple[Tensor, ...]:
        mine, theirs = tuple(self.size()), tuple(other.size())
        if mine != theirs:
            raise ShapeError(f"both FVectors must have one shape (c, n), got {mine} and {theirs}")
        return other._tensors

    def __repr__(self) -> str:
        outputs, examples = self.size()
        return f"FVector(c={outputs}, n={examples}, {self.vector_repr.dtype}, {self.vector_repr.device})"


def random_fvector(
    n_samples: int,
    n_output: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> FVector:
    """A vector of independent standard normal coordinates.

    Args:
        n_samples: Number n of examples.
        n_output: Number c of outputs.
        device: Device of the result.
        dtype: Its dtype, torch's default one if None.
        generator: Source of randomness, torch's default one if None.

    Returns:
        FVector: Of shape (c, n).

    Example:
        >>> random_fvector(5, n_output=3).size()
        torch.Size([3, 5])
    """
    return FVector(torch.randn(n_output, n_samples, device=device, dtype=dtype, generator=generator))
