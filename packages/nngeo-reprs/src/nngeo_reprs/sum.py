"""PMatSum: a sum of matrices of any representations, kept as it is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.matrices.arithmetic import MatrixArithmetic
from nngeo_core.matrices.files import describe_part, restore_parts
from nngeo_core.matrices.pmat import PMat
from nngeo_core.parallel.group import Group
from nngeo_reprs.eye import PMatEye
from nngeo_reprs.iterative import IterativeMatrix

__all__ = ["LazyMatrix", "PMatSum"]

LARGEST_NORM = 16_384
"""Parameters up to which the Frobenius norm is computed from d products."""

_ROWS = 64
"""Unit vectors multiplied at once."""


class LazyMatrix(IterativeMatrix):
    """A matrix whose sums with any other are kept as they are, in a `PMatSum`."""

    is_lazy = True

    @classmethod
    def _sum_of(cls, first: MatrixArithmetic, second: MatrixArithmetic, n_examples: int | None = None) -> "PMatSum":
        assert isinstance(first, PMat)
        assert isinstance(second, PMat)
        return PMatSum([first, second], n_examples)

    def _add(self, other: PMat) -> "PMatSum":
        return self._sum_of(self, other)

    def _add_identity(self, scaling: Tensor) -> "PMatSum":
        return self._sum_of(self, PMatEye(layer_collection=self.layer_collection, scaling=scaling), self.n_examples)


class PMatSum(LazyMatrix):
    """M_1 + M_2 + ... for matrices about the same layers, such as one representation plus a multiple of another.

    Nothing is computed until it is asked for. Products, quadratic forms, trace and diagonal are the parts', added up;
    `solve` runs conjugate gradients on the products, and `norm(2)` Lanczos; the Frobenius norm takes d products, exact in
    every representation, up to 16,384 parameters. What else a sum of different kinds has no exact form for, raises.

    Args:
        parts: One matrix at least; sums among them are taken apart. A `PMatEye` takes the others' dtype and device.
        n_examples: How many examples the sum is about, if known.

    Raises:
        ValueError: There are no parts, or they are not on one device in one dtype.
        TypeError: One is no matrix.
        LayerCollectionMismatchError: They are about different layers.

    Example:
        >>> from nngeo_core import LayerCollection, LinearLayer
        >>> from nngeo_reprs import PMatDense, PMatDiag
        >>> layers = LayerCollection({"fc": LinearLayer(2, 1, bias=False)})
        >>> diagonal = PMatDiag(data=torch.tensor([1.0, 2.0]), layer_collection=layers)
        >>> total = PMatSum([diagonal, PMatDense(data=torch.ones(2, 2), layer_collection=layers)])
        >>> total.get_dense_tensor()
        tensor([[2., 1.],
                [1., 3.]])
    """

    name = "sum"
    data: tuple[PMat, ...]

    def __init__(self, parts: Sequence[PMat], n_examples: int | None = None) -> None:
        found = _flattened(parts)
        likelihoods = {part.likelihood for part in found if not part.is_identity}
        super().__init__(
            data=found,
            layer_collection=found[0].layer_collection,
            n_examples=n_examples,
            symmetric=all(part.symmetric for part in found),
            likelihood=likelihoods.pop() if len(likelihoods) == 1 else None,
        )

    def _checked(self, data: Any) -> tuple[PMat, ...]:
        parts: tuple[PMat, ...] = data
        for part in parts[1:]:
            self.layer_collection.check_same(part.layer_collection)
        leading = next((part for part in parts if not part.is_identity), parts[0])
        parts = tuple(part.to(leading.dtype, leading.device) if part.is_identity else part for part in parts)
        kinds = {(part.dtype, str(part.device)) for part in parts}
        if len(kinds) > 1:
            raise ValueError(
                f"the parts of a PMatSum have one dtype and device, got {sorted(kinds, key=str)}; use part.to(dtype, device)"
            )
        return parts

    @property
    def parts(self) -> tuple[PMat, ...]:
        """The matrices that are added."""
        return self.data

    @property
    def _group(self) -> Group | None:
        return next((part._group for part in self.data if part._group is not None), None)

    @property
    def dtype(self) -> torch.dtype:
        """That of the parts."""
        return self.data[0].dtype

    @property
    def device(self) -> torch.device:
        """That of the parts."""
        return self.data[0].device

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors of all parts, by place and name."""
        return {
            f"{place}.{name}": tensor for place, part in enumerate(self.data) for name, tensor in part.tensors().items()
        }

    def _description(self) -> dict[str, Any]:
        return {"parts": [describe_part(part) for part in self.data], "n_examples": self.n_examples}

    @classmethod
    def _restored(cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> "PMatSum":
        return cls(restore_parts(PMat, tensors, description["parts"]), description["n_examples"])  # type: ignore[type-abstract]

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "PMatSum":
        """The sum of the parts in another dtype or on another device.

        Raises:
            TypeError: The dtype is not a real floating-point one.
        """
        return PMatSum([part.to(dtype, device) for part in self.data], self.n_examples)

    def __repr__(self) -> str:
        """What `PMat` says, and each part."""
        return "\n  + ".join([super().__repr__(), *map(repr, self.data)])

    def _total(self, value: Callable[[PMat], Tensor]) -> Tensor:
        found: Tensor = reduce(add, map(value, self.data))
        return found

    def _mv(self, v: Tensor) -> Tensor:
        return self._total(lambda part: part._mv(v))

    def _quadratic_form(self, v: Tensor) -> Tensor:
        return self._total(lambda part: part._quadratic_form(v))

    def _scaled(self, scalar: float | Tensor) -> "PMatSum":
        return PMatSum([scalar * part for part in self.data], self.n_examples)

    def _mm(self, other: "PMatSum") -> Any:
        self._unsupported("the product of sums", "apply their products mv one after the other")

    def _inverse(self, regul: float) -> Any:
        self._unsupported("the inverse of a sum", "use solve(v, regul), or convert('dense')")

    def _averaged(self, examples: Any, decay: float, progress: bool) -> Any:
        self._unsupported("an average of a sum with new examples", "update the parts")

    def update(self, examples: Any, decay: float, progress: bool = False, **options: Any) -> None:
        """Refused: the parts may come from different examples.

        Raises:
            UnsupportedOperationError: Always.
        """
        self._averaged(examples, decay, progress)

    def trace(self) -> Tensor:
        """The trace, 0-dimensional."""
        return self._total(lambda part: part.trace())

    def get_diag(self) -> Tensor:
        """The diagonal, shape (d,)."""
        return self._total(lambda part: part.get_diag())

    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """All entries, shape (d, d), where every part has them.

        Args:
            split_weight_bias: Flat parameters have a layer's weights before its biases: the only order of a sum.

        Raises:
            UnsupportedOperationError: A part does not give its entries.
        """
        if not split_weight_bias:
            raise UnsupportedOperationError(
                "the parts of a PMatSum have no common order but that of the flat parameters; ask the parts one by one"
            )
        return self._total(lambda part: part.get_dense_tensor())

    def _entries(self) -> Tensor:
        return self._total(lambda part: part._entries())

    def _blocks(self) -> dict[str, Tensor]:
        blocks = [part._blocks() for part in self.data]
        return {layer_id: reduce(add, [found[layer_id] for found in blocks]) for layer_id in self.layer_collection}

    def frobenius_norm(self) -> Tensor:
        """The Frobenius norm, 0-dimensional, from d products.

        Raises:
            UnsupportedOperationError: There are more than 16,384 parameters.
        """
        parts = [euclidean_norm(columns) for _, columns in self._columns()]
        return euclidean_norm(torch.stack(parts))

    def _norm_per_layer(self) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {layer_id: [] for layer_id in self.layer_collection}
        for first, columns in self._columns():
            for layer_id, place in self.layer_collection.slices().items():
                mine = columns[max(0, place.start - first) : max(0, place.stop - first), place]
                parts[layer_id].append(euclidean_norm(mine))
        return {layer_id: euclidean_norm(torch.stack(norms)) for layer_id, norms in parts.items()}

    def _columns(self) -> Iterator[tuple[int, Tensor]]:
        """The columns of M, some at a time, as rows (k, d), each time with the place of the first."""
        d = self.layer_collection.numel()
        if d > LARGEST_NORM:
            self._unsupported(
                f"the Frobenius norm for {d} parameters, which takes as many products,",
                f"up to {LARGEST_NORM} it is exact; norm(2) and the trace take few products",
            )
        for first in range(0, d, _ROWS):
            units = torch.zeros(min(_ROWS, d - first), d, dtype=self.dtype, device=self.device)
            units[:, first:].fill_diagonal_(1)
            yield first, self._products(units)


def _flattened(parts: Sequence[PMat]) -> tuple[PMat, ...]:
    """The parts of parts."""
    found: list[PMat] = []
    for part in parts:
        if not isinstance(part, PMat):
            raise TypeError(f"the parts of a PMatSum are matrices, got {type(part).__name__}")
        found.extend(part.parts if isinstance(part, PMatSum) else [part])
    if not found:
        raise ValueError("a PMatSum has no parts; give at least one matrix")
    return tuple(found)
