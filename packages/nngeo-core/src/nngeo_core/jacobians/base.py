"""LayerJacobian: the waist between what differentiates layers and what stores matrices."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.jacobians.layout import KroneckerFactors, KroneckerLayout
from nngeo_core.linear_algebra.symmetric import add_gram_, mirror_

__all__ = ["LayerJacobian"]


class LayerJacobian(ABC):
    """The derivative of c output directions, for n examples, with respect to the d parameters of one layer.

    Logically a (c, n, d) tensor J, kept in whatever structure the layer gives it. A subclass must say how to form that
    tensor; every contraction has a default that goes through it, and a structured class overrides what it can do in fewer
    multiplications. Sums run over examples and directions and are never averaged here.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(c, n, d)."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the stored tensors."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the stored tensors."""

    @property
    def nbytes(self) -> int:
        """Bytes that the stored tensors take; as many as the dense tensor unless a subclass says otherwise."""
        c, n, d = self.shape
        return c * n * d * self.dtype.itemsize

    @property
    def input_nbytes(self) -> int:
        """Those of them that do not grow with the number of directions."""
        return 0

    @abstractmethod
    def to_dense(self) -> Tensor:
        """J, shape (c, n, d)."""

    def to(self, dtype: torch.dtype) -> "LayerJacobian":
        """The same J in another dtype: that of the sums, for a layer that computes in one of fewer digits than others.

        Raises:
            UnsupportedOperationError: A subclass does not say how.
        """
        if dtype == self.dtype:
            return self
        raise UnsupportedOperationError(
            f"a {type(self).__name__} in {self.dtype} cannot become {dtype}, in which other layers of the model compute; give "
            "the model one dtype, or the class a method `to`"
        )

    def of_examples(self, examples: slice | Tensor) -> "LayerJacobian | None":
        """J of some examples, a slice or their numbers, in the same structure; None where a subclass does not say how."""
        return None

    def dense_rows(self, examples: slice) -> Tensor:
        """J of some examples, shape (c, m, d), without the others' where that can be."""
        some = self.of_examples(examples)
        return self.to_dense()[:, examples] if some is None else some.to_dense()

    def __repr__(self) -> str:
        """Sizes, dtype and device."""
        c, n, d = self.shape
        return f"{type(self).__name__}({c} directions, {n} examples, {d} parameters, {self.dtype}, {self.device})"

    def joined(self, other: "LayerJacobian") -> "LayerJacobian | None":
        """J + J' in the structure that both share, or None if they share none (see `nngeo_core.jacobians.sum.add`)."""
        return None

    def with_mask(self, mask: Tensor) -> "LayerJacobian":
        """The same J, whose Kronecker factors leave out the positions (n, s) where a mask is False, if it has that many.

        J itself is exact and stays as it is; its factors are sums and averages over positions, and padding is none.
        """
        return self

    def reduced(self) -> "LayerJacobian":
        """What the Kronecker factors of "KFAC-reduce" are computed from (Eschenhagen et al. 2023).

        Of a layer with shared positions, the one whose positions are one: inputs averaged over them, gradients summed, as if
        all positions had read the same input. It is exact where the outputs are averaged over positions, and linear; of a
        layer without positions it is J itself.

        Raises:
            UnsupportedOperationError: The averaged inputs have no factor that could be stored.
        """
        return self

    def jvp(self, v: Tensor) -> Tensor:
        """J v, shape (c, n), for v of shape (d,)."""
        return self.to_dense() @ v

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u = sum_{c,n} u[c, n] J[c, n], shape (d,), for u of shape (c, n)."""
        return u.flatten() @ self.to_dense().flatten(0, 1)

    def residual(self, gradients: Sequence[Tensor], u: Tensor) -> list[Tensor]:
        """What is left of gradients, one for each parameter in the layer's order, without J^T u: new tensors, flat each."""
        parts = [gradient.flatten() for gradient in gradients]
        left = list(self.vjp(u).neg_().split([len(part) for part in parts]))
        torch._foreach_add_(left, parts)
        return left

    def sum_of_squares(self) -> Tensor:
        """The diagonal of J^T J, shape (d,)."""
        return self.to_dense().square().sum((0, 1))

    def add_squares_to(self, total: Tensor) -> None:
        """Add `sum_of_squares()` to a tensor (d,) in place, without a second tensor of that size where that can be."""
        total += self.sum_of_squares()

    def squared_norm(self) -> Tensor:
        """The trace of J^T J, 0-dimensional."""
        return self.to_dense().square().sum()

    def second_moment(self) -> Tensor:
        """J^T J, shape (d, d), of which half is computed."""
        rows = self.to_dense().flatten(0, 1)
        half = rows.new_zeros(rows.shape[1], rows.shape[1])
        add_gram_(half, rows)
        return mirror_(half)

    def gram(self, other: "LayerJacobian") -> Tensor:
        """J J'^T with another Jacobian of the same layer, shape (c, n, c', n')."""
        rows, columns = self.to_dense(), other.to_dense()
        return torch.einsum("cnd,kmd->cnkm", rows, columns)  # c, k outputs; n, m examples; d parameters

    @property
    def pairs(self) -> KroneckerLayout | None:
        """Where the weights and the bias of each output lie, of a layer that has both and so a `bias_cross`; else None."""
        return None

    def bias_cross(self) -> Tensor:
        """The entries of J^T J between each weight and the bias of its output, in the weight's order, shape (d_weight,).

        Raises:
            UnsupportedOperationError: The layer has no such pairs.
        """
        raise UnsupportedOperationError(
            f"{type(self).__name__} does not say which bias goes with which weight, so it has no quasi-diagonal; "
            "use the diagonal or the dense representation for this layer"
        )

    def kronecker_factors(self, inputs: bool = True) -> KroneckerFactors:
        """The two Kronecker factors of J^T J, summed over examples (see `nngeo_core.conventions`).

        Args:
            inputs: Whether to compute the input factor. It does not depend on the output directions, so a pass that
                streams them in slices asks for it on the first slice alone; otherwise it is zero.

        Raises:
            UnsupportedOperationError: The layer's Jacobian is not a sum of Kronecker products.
        """
        raise UnsupportedOperationError(
            f"{type(self).__name__} is not a sum of Kronecker products, so it has no Kronecker factors; "
            "use the diagonal or the dense representation for this layer"
        )

    def rotate(self, input_basis: Tensor | None, output_basis: Tensor) -> "LayerJacobian":
        """The Jacobian in a Kronecker-factored basis, for EKFAC: its parameters are the coordinates, in the order (q, G, A).

        Args:
            input_basis: Shape (q, A, A), or (q, A + 1, A + 1) with a bias; columns are the basis vectors. None for unit
                vectors: the inputs stay as they are, and the coordinates lie as the parameters did.
            output_basis: Shape (q, G, G).

        Raises:
            UnsupportedOperationError: The layer's Jacobian is not a sum of Kronecker products.
        """
        raise UnsupportedOperationError(
            f"{type(self).__name__} is not a sum of Kronecker products and cannot be turned into a Kronecker basis"
        )
