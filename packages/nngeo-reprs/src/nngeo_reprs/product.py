"""PMatProduct: a product of two matrices, kept as its factors."""

from typing import Any

import torch
from torch import Tensor

from nngeo_core.matrices.pmat import PMat
from nngeo_core.parallel.group import Group
from nngeo_reprs.sum import LazyMatrix

__all__ = ["PMatProduct"]


class PMatProduct(LazyMatrix):
    """A B for matrices about the same layers, as their products with vectors one after the other; not symmetric.

    What needs entries or symmetry raises: `convert("dense")` computes the entries.

    Args:
        first: A.
        second: B.
        n_examples: How many examples the product is about, if known.

    Example:
        >>> from nngeo_core import LayerCollection, LinearLayer
        >>> from nngeo_reprs import PMatDiag
        >>> layers = LayerCollection({"fc": LinearLayer(2, 1, bias=False)})
        >>> diagonal = PMatDiag(data=torch.tensor([1.0, 2.0]), layer_collection=layers)
        >>> PMatProduct(diagonal, diagonal).mv(torch.ones(1, 2))
        tensor([[1., 4.]])
    """

    name = "product"
    data: tuple[PMat, PMat]

    def __init__(self, first: PMat, second: PMat, n_examples: int | None = None) -> None:
        first.layer_collection.check_same(second.layer_collection)
        super().__init__(
            data=(first, second), layer_collection=first.layer_collection, n_examples=n_examples, symmetric=False
        )

    def _checked(self, data: Any) -> tuple[PMat, PMat]:
        first, second = data
        if (first.dtype, first.device) != (second.dtype, second.device):
            raise ValueError(
                f"the factors of a PMatProduct have one dtype and device, got {first.dtype} on {first.device} and "
                f"{second.dtype} on {second.device}; use to(dtype, device)"
            )
        return first, second

    @property
    def _group(self) -> Group | None:
        return next((part._group for part in self.data if part._group is not None), None)

    @property
    def dtype(self) -> torch.dtype:
        """That of the factors."""
        return self.data[0].dtype

    @property
    def device(self) -> torch.device:
        """That of the factors."""
        return self.data[0].device

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors of both factors, by place and name."""
        return {
            f"{place}.{name}": tensor for place, part in enumerate(self.data) for name, tensor in part.tensors().items()
        }

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "PMatProduct":
        """The product of the factors in another dtype or on another device.

        Raises:
            TypeError: The dtype is not a real floating-point one.
        """
        first, second = (part.to(dtype, device) for part in self.data)
        return PMatProduct(first, second, self.n_examples)

    def _mv(self, v: Tensor) -> Tensor:
        first, second = self.data
        return first._mv(second._mv(v))

    def _entries(self) -> Tensor:
        first, second = self.data
        return first._entries() @ second._entries()

    def _scaled(self, scalar: float | Tensor) -> "PMatProduct":
        return PMatProduct(scalar * self.data[0], self.data[1], self.n_examples)

    def _mm(self, other: "PMatProduct") -> "PMatProduct":
        return PMatProduct(self, other)

    def _inverse(self, regul: float) -> Any:
        self._unsupported("the inverse of a product", "convert('dense') has one")

    def _averaged(self, examples: Any, decay: float, progress: bool) -> Any:
        self._unsupported("an average of a product with new examples", "compute the factors again")

    def trace(self) -> Tensor:
        """Refused: it takes the entries.

        Raises:
            UnsupportedOperationError: Always.
        """
        self._unsupported("the trace of a product", "convert('dense') has it")

    def get_diag(self) -> Tensor:
        """Refused: it takes the entries.

        Raises:
            UnsupportedOperationError: Always.
        """
        self._unsupported("the diagonal of a product", "convert('dense') has it")

    def frobenius_norm(self) -> Tensor:
        """Refused: it takes the entries.

        Raises:
            UnsupportedOperationError: Always.
        """
        self._unsupported("the Frobenius norm of a product", "convert('dense') has it")

    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """Refused: nothing is formed unasked.

        Raises:
            UnsupportedOperationError: Always.
        """
        self._unsupported("a tensor of entries", "convert('dense') computes it")
