"""PMatEye: a multiple of the identity."""

import math
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import NonFiniteError, ShapeError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.damping import check_definite, check_invertible
from nngeo_core.linear_algebra.spectrum import reciprocals, roots
from nngeo_core.matrices.eigen import Eigendecomposition
from nngeo_core.matrices.pmat import PMat
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.generator import Generator

__all__ = ["PMatEye"]


class EyeAccumulator(Accumulator):
    """Sums the traces of all layers."""

    signed = True

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add the squared norms of the Jacobians."""
        total = torch.zeros((), dtype=batch.dtype, device=batch.device)
        for jacobian in batch.layers.values():
            total += batch.sign * jacobian.squared_norm()
        self.add("trace", total)

    def finalize(self) -> Tensor:
        """The mean eigenvalue of F, 0-dimensional."""
        return self.average("trace") / self.layer_collection.numel()


class PMatEye(PMat):
    """c I. From examples, c is the mean eigenvalue of F, so that the trace is exact; memory 1.

    Adding it to another matrix gives that matrix plus c I, in the kind that can hold it: `F + PMatEye(layer_collection=
    F.layer_collection, scaling=c)`.

    Args:
        generator: As for `PMat`.
        data: c as a 0-dimensional tensor, or `scaling`.
        examples: As for `PMat`.
        layer_collection: As for `PMat`.
        scaling: c, a 0-dimensional tensor, whose dtype and device the matrix takes, or a float, which is float64: so that
            nothing of it is lost in a sum.
        **options: As for `PMat`.

    Example:
        >>> from nngeo_core import LayerCollection, LinearLayer
        >>> PMatEye(layer_collection=LayerCollection({"fc": LinearLayer(2, 1)}), scaling=2.0).trace()
        tensor(6., dtype=torch.float64)
    """

    name = "eye"
    accumulator = EyeAccumulator
    is_identity = True
    data: Tensor

    def __init__(
        self,
        generator: Generator | None = None,
        data: Any = None,
        examples: Any = None,
        layer_collection: LayerCollection | None = None,
        *,
        scaling: float | Tensor | None = None,
        **options: Any,
    ) -> None:
        if data is not None and scaling is not None:
            raise ValueError("give either `data` or `scaling` to PMatEye, which mean the same; got both")
        data = scaling if data is None else data
        super().__init__(generator, data, examples, layer_collection, **options)

    def _checked(self, data: Any) -> Tensor:
        if isinstance(data, bool) or not isinstance(data, int | float | Tensor):
            raise TypeError(
                f"the scaling of a PMatEye is a number or a 0-dimensional tensor, got {type(data).__name__}"
            )
        scaling = data if isinstance(data, Tensor) else torch.tensor(data, dtype=torch.float64)
        if scaling.ndim or not scaling.is_floating_point():
            raise ShapeError(
                f"the scaling of a PMatEye is one real number, got shape {tuple(scaling.shape)} and dtype {scaling.dtype}"
            )
        if not scaling.isfinite():
            raise NonFiniteError(f"the scaling of a PMatEye is {scaling.item()}")
        return scaling

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> int:
        """One, for all layers together."""
        return 1

    def scale(self) -> Tensor:
        """The factor c itself, 0-dimensional."""
        return self.data

    def _mv(self, v: Tensor) -> Tensor:
        return v * self.data

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        return v / self._damped(regul)

    def _inverse(self, regul: float) -> "PMatEye":
        return self._like(1 / self._damped(regul))

    def _damped(self, regul: float) -> Tensor:
        damped = self.data + regul
        check_invertible(damped, regul, "c I", exact=True)
        return damped

    def _mm(self, other: "PMatEye") -> "PMatEye":
        return self._like(self.data * other.data)

    def _add(self, other: "PMatEye") -> "PMatEye":
        return self._like(self.data + other.data)

    def _scaled(self, scalar: float | Tensor) -> "PMatEye":
        return self._like(self.data * scalar, n_examples=self.n_examples)

    def _eigendecomposition(self, k: int | None) -> Eigendecomposition:
        d = self.layer_collection.numel()
        identity = torch.nn.functional.one_hot
        return Eigendecomposition(
            self.layer_collection, self.data.expand(d), lambda places: identity(places, d).to(self.data)
        ).leading(k)

    def _eigenvalues(self) -> Tensor:
        return self.data.unsqueeze(0)

    def _logdet(self, regul: float) -> Tensor:
        damped = self.data + regul
        check_definite(damped, regul, "c I", exact=True)
        return self.layer_collection.numel() * damped.log()

    def _sample(self, regul: float, generator: torch.Generator | None) -> Tensor:
        damped = self.data + regul
        check_definite(damped, regul, "c I", exact=True)
        return self._normal((self.layer_collection.numel(),), generator) / damped.sqrt()

    def _sqrt(self) -> "PMatEye":
        return self._like(roots(self.data, 1, "c I"))

    def _pinv(self) -> "PMatEye":
        return self._like(reciprocals(self.data, 1))

    def trace(self) -> Tensor:
        """The trace d c, 0-dimensional."""
        return self.data * self.layer_collection.numel()

    def frobenius_norm(self) -> Tensor:
        """sqrt(d) |c|, 0-dimensional."""
        return self.data.abs() * math.sqrt(self.layer_collection.numel())

    def _norm_per_layer(self) -> dict[str, Tensor]:
        return {
            layer_id: self.data.abs() * math.sqrt(layer.numel()) for layer_id, layer in self.layer_collection.items()
        }

    def get_diag(self) -> Tensor:
        """The diagonal, shape (d,)."""
        return self.data.repeat(self.layer_collection.numel())

    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """All entries, shape (d, d).

        Args:
            split_weight_bias: Flat parameters have a layer's weights before its biases: always true of this representation.
        """
        return self.get_diag().diag()
