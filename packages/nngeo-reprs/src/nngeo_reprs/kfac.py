"""PMatKFAC: each layer's block as one Kronecker product."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from nngeo_core.conventions import DEFAULT_REGUL, checked_regul
from nngeo_core.errors import LayerCollectionMismatchError, NonFiniteError, ShapeError
from nngeo_core.jacobians.layout import KroneckerFactors, KroneckerLayout
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.damping import check_invertible, factorize
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.matrices.pmat import PMat
from nngeo_core.vectors.pvector import PVector
from nngeo_reprs.kfac_sums import KFACAccumulator
from nngeo_reprs.kronecker import (
    KroneckerBasis,
    compose,
    dense_block,
    diagonal,
    eigenbasis,
    factored_damping,
    multiply,
    norms,
)

__all__ = ["PMatKFAC"]


class PMatKFAC(PMat):
    """Each layer's block as G (x) A; cross-layer blocks are zero (Martens & Grosse 2015; Grosse & Martens 2016).

    A = (1/n) sum_i sum_s a a^T over the layer's inputs, with the constant input of a bias, G = (1/n) sum_i (1/s) sum_s
    sum_c g g^T over its output gradients: sums over positions s in A, averages in G. Exact for deep linear networks
    without shared positions under `regression`; elsewhere it neglects that a and g are correlated. Memory
    sum_l (A_l^2 + G_l^2); an embedding's A is diagonal, and kept as its diagonal.

    `data` is a mapping from layer id to `KroneckerFactors`, or to a pair (A, G) of matrices.

    Example:
        >>> from nngeo_core import LayerCollection, LinearLayer
        >>> layers = LayerCollection({"fc": LinearLayer(2, 1, bias=False)})
        >>> F = PMatKFAC(data={"fc": (torch.eye(2), torch.tensor([[3.0]]))}, layer_collection=layers)
        >>> F.trace()
        tensor(6.)
    """

    name = "kfac"
    accumulator = KFACAccumulator
    exact_entries = "kronecker"
    data: dict[str, KroneckerFactors]

    def _checked(self, data: Any) -> dict[str, KroneckerFactors]:
        if not isinstance(data, Mapping) or list(data) != list(self.layer_collection):
            given = list(data) if isinstance(data, Mapping) else type(data).__name__
            raise LayerCollectionMismatchError(
                f"the data of a PMatKFAC is a mapping with the layers {list(self.layer_collection)}, got {given}"
            )
        return {layer_id: self._checked_factors(layer_id, pair) for layer_id, pair in data.items()}

    def _checked_factors(self, layer_id: str, given: KroneckerFactors | tuple[Tensor, Tensor]) -> KroneckerFactors:
        shapes = self.layer_collection[layer_id].parameter_shapes()
        if not isinstance(given, KroneckerFactors):
            inputs, outputs = (factor if factor.ndim == 3 else factor.unsqueeze(0) for factor in given)
            has_bias = "bias" in shapes
            layout = KroneckerLayout(len(outputs), outputs.shape[-1], inputs.shape[-1] - has_bias, has_bias)
            given = KroneckerFactors(inputs, outputs, layout)
        layout = given.layout
        q, width, numel = layout.groups, layout.input_width, self.layer_collection[layer_id].numel()
        found = (tuple(given.inputs.shape), tuple(given.outputs.shape))
        inputs_fit = found[0] in ((q, width, width), (q, width))
        if not inputs_fit or found[1] != (q, layout.outputs, layout.outputs) or layout.numel != numel:
            raise ShapeError(
                f"layer '{layer_id}' with parameters {shapes}: got Kronecker factors of shapes {found[0]} and {found[1]}; "
                "expected (q, A, A), or (q, A) for a diagonal, and (q, G, G) with A counting the bias's constant input and "
                "q G A parameters in all"
            )
        if not (all_finite(given.inputs) and all_finite(given.outputs)):
            raise NonFiniteError(f"layer '{layer_id}': the Kronecker factors have NaN or infinite entries")
        return given

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> dict[str, int | None]:
        """A^2 + G^2 for each group of a layer, A counting a bias; V + G^2 for a table of V rows; None without factors."""
        structures = {layer_id: layers.structure(layer_id) for layer_id in layers}
        return {layer_id: found.factor_numel for layer_id, found in structures.items() if found is not None}

    def tensors(self) -> dict[str, Tensor]:
        """Both factors of each layer, as `"<layer id>.inputs"` and `"<layer id>.outputs"`."""
        return {
            f"{layer_id}.{name}": getattr(factors, name)
            for layer_id, factors in self.data.items()
            for name in ("inputs", "outputs")
        }

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "PMatKFAC":
        changed = {
            layer_id: replace(factors, inputs=change(factors.inputs), outputs=change(factors.outputs))
            for layer_id, factors in self.data.items()
        }
        return self._like(changed, self.symmetric, self.n_examples)

    def _mv(self, v: Tensor) -> Tensor:
        return self._by_layer(v, lambda layer_id, matrix: multiply(self.data[layer_id], matrix))

    def _by_layer(self, v: Tensor, act: Callable[[str, Tensor], Tensor]) -> Tensor:
        """Apply a function of each layer's matrix (..., q, G, A) to v (..., d)."""
        parts = []
        for layer_id, place in self.layer_collection.slices().items():
            layout = self.data[layer_id].layout
            parts.append(layout.from_matrix(act(layer_id, layout.to_matrix(v[..., place]))))
        return torch.cat(parts, -1)

    @overload
    def solve(self, v: PVector, regul: float | Tensor = ..., use_pi: bool = ...) -> PVector: ...
    @overload
    def solve(self, v: Tensor, regul: float | Tensor = ..., use_pi: bool = ...) -> Tensor: ...
    def solve(
        self, v: PVector | Tensor, regul: float | Tensor = DEFAULT_REGUL, use_pi: bool = False
    ) -> PVector | Tensor:
        """(M + regul I)^-1 v, exactly, from the eigendecompositions of both factors, which are kept.

        Args:
            v: The right-hand side: a vector, or a batch of flat ones, a tensor (k, d) or (c, n, d).
            regul: The damping r.
            use_pi: Damp the factors instead, (G + sqrt(r)/pi I) (x) (A + pi sqrt(r) I) with pi^2 the ratio of their mean
                eigenvalues (Martens & Grosse 2015, section 6.3): an approximation of M + r I.

        Raises:
            ValueError: `regul` is negative or no single number.
            LayerCollectionMismatchError: v is about other layers.
            NotPositiveDefiniteError: The damped matrix is singular to working precision.
            UnsupportedOperationError: The matrix is a product, and damped.
        """
        checked = checked_regul(regul)
        found: PVector | Tensor = self._on_vectors(lambda rows: self._damped_solve(rows, checked, use_pi), v)
        return found

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        return self._damped_solve(v, regul, use_pi=False)

    def _damped_solve(self, v: Tensor, regul: float, use_pi: bool) -> Tensor:
        if not self.symmetric:
            return self._solve_product(v, regul)
        return self._by_layer(v, lambda layer_id, matrix: self._divided(layer_id, matrix, regul, use_pi))

    def _divided(self, layer_id: str, matrix: Tensor, regul: float, use_pi: bool) -> Tensor:
        basis = self._bases()[layer_id]
        shifts = factored_damping(self.data[layer_id], regul) if use_pi else (0.0, 0.0)
        damped = basis.eigenvalues(*shifts) + (0.0 if use_pi else regul)
        check_invertible(damped, regul, f"the block of layer '{layer_id}'")
        return basis.divide(matrix, damped)

    def _bases(self) -> dict[str, KroneckerBasis]:
        """The eigendecompositions of all factors, computed once."""
        return self._cached("bases", lambda: {layer_id: eigenbasis(factors) for layer_id, factors in self.data.items()})

    def _solve_product(self, v: Tensor, regul: float) -> Tensor:
        """G^-1 V A^-T by LU: a product of Kronecker matrices has no orthogonal eigenbasis."""
        if regul:
            self._unsupported(
                f"the damped inverse of a product (regul={regul:g})", "solve with both matrices in turn, or regul=0"
            )

        def divide(layer_id: str, matrix: Tensor) -> Tensor:
            factors, what = self.data[layer_id], f"a factor of layer '{layer_id}'"
            left = factorize(factors.outputs, 0.0, symmetric=False, what=what)(matrix)
            if factors.inputs.ndim == 2:
                check_invertible(factors.inputs, 0.0, what)
                return left / factors.inputs.unsqueeze(-2)
            return factorize(factors.inputs, 0.0, symmetric=False, what=what)(left.mT).mT

        return self._by_layer(v, divide)

    def _inverse(self, regul: float) -> "PMatKFAC":
        if regul:
            self._unsupported(
                f"(M + {regul:g} I)^-1", f"use solve(v, regul={regul:g}) for its products, or inverse(regul=0)"
            )
        if not self.symmetric:
            self._unsupported("the inverse of a product", "use solve(v, regul=0) for its products")
        return self._like({layer_id: self._inverse_factors(layer_id) for layer_id in self.data})

    def _inverse_factors(self, layer_id: str) -> KroneckerFactors:
        basis = self._bases()[layer_id]
        check_invertible(basis.eigenvalues(), 0.0, f"the block of layer '{layer_id}'")
        inputs, outputs = basis.inverse()
        return replace(self.data[layer_id], inputs=inputs, outputs=outputs)

    def _mm(self, other: "PMatKFAC") -> "PMatKFAC":
        products = {}
        for layer_id, mine in self.data.items():
            theirs = other.data[layer_id]
            if mine.layout != theirs.layout:
                self._unsupported(
                    f"the product over layer '{layer_id}' of blocks with different groups", "use mv twice"
                )
            products[layer_id] = compose(mine, theirs)
        return self._like(products, symmetric=False)

    def _add(self, other: "PMatKFAC") -> "PMatKFAC":
        self._unsupported(
            "a sum of two Kronecker products", "add the products mv of both, or compute both as PMatDense"
        )

    def _scaled(self, scalar: float | Tensor) -> "PMatKFAC":
        scaled = {
            layer_id: replace(factors, outputs=factors.outputs * scalar) for layer_id, factors in self.data.items()
        }
        return self._like(scaled, self.symmetric, self.n_examples)

    def trace(self) -> Tensor:
        """The trace, 0-dimensional: sum over layers and groups of tr A tr G."""
        return torch.stack([diagonal(factors).sum() for factors in self.data.values()]).sum()

    def frobenius_norm(self) -> Tensor:
        """The Frobenius norm, 0-dimensional: |A| |G| for each group."""
        norm: Tensor = torch.linalg.vector_norm(torch.cat([norms(factors) for factors in self.data.values()]))
        return norm

    def get_diag(self, split_weight_bias: bool = True) -> Tensor:
        """The diagonal, shape (d,).

        Args:
            split_weight_bias: Order each layer's weights before its biases, as flat parameters are; otherwise each output's
                bias follows its weights.
        """
        parts = []
        for factors in self.data.values():
            block = diagonal(factors)
            parts.append(factors.layout.from_matrix(block) if split_weight_bias else block.flatten())
        return torch.cat(parts)

    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """All entries, shape (d, d).

        Args:
            split_weight_bias: Order each layer's weights before its biases, as flat parameters are; otherwise each output's
                bias follows its weights.
        """
        d = self.layer_collection.numel()
        dense = torch.zeros(d, d, dtype=self.dtype, device=self.device)
        for layer_id, place in self.layer_collection.slices().items():
            dense[place, place] = dense_block(self.data[layer_id], split_weight_bias)
        return dense
