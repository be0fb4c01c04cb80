"""PMatKFAC: each layer's block as one Kronecker product."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from nngeo_core.conventions import DEFAULT_REGUL, checked_regul
from nngeo_core.errors import NonFiniteError, ShapeError
from nngeo_core.jacobians.layout import KroneckerFactors, KroneckerLayout
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.damping import check_invertible, factorize
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.sweep.processes import telling
from nngeo_core.vectors.pvector import PVector
from nngeo_reprs.ekfac import PMatEKFAC
from nngeo_reprs.kfac_sums import KFACAccumulator
from nngeo_reprs.kronecker import (
    averaged,
    compose,
    dense_block,
    diagonal,
    factored_damping,
    multiply,
    norms,
    pseudo_inverse,
    singular_values,
)
from nngeo_reprs.kronecker_basis import EigenBlock, FactorSpectrum, shared_spectra, spectrum
from nngeo_reprs.kronecker_matrix import KroneckerMatrix, block_name
from nngeo_reprs.kronecker_null_space import null_width, solve_beside_null_space
from nngeo_reprs.sum import PMatSum

__all__ = ["PMatKFAC"]


class PMatKFAC(KroneckerMatrix):
    """Each layer's block as G (x) A; cross-layer blocks are zero (Martens & Grosse 2015; Grosse & Martens 2016).

    A = (1/n) sum_i sum_s a a^T over the layer's inputs, with the constant input of a bias, G = (1/n) sum_i (1/s) sum_s
    sum_c g g^T over its output gradients: sums over positions s in A, averages in G. Exact for deep linear networks
    without shared positions under `regression`; elsewhere it neglects that a and g are correlated. Memory
    sum_l (A_l^2 + G_l^2); an embedding's A is diagonal, and kept as its diagonal.

    `inverse(regul)` and the sum with c I have the same eigenvectors and no factors: they are `PMatEKFAC`. Roots and
    pseudo-inverses are taken factor by factor, with a cut-off at W eps times the largest eigenvalue of each factor, W wide.
    All else that needs eigenvalues takes those of a singular factor, as few examples have, for zero where they are rounding.
    `update(examples, decay)` averages each factor by itself, as is practised in natural gradient (Martens & Grosse 2015,
    section 5): the average of products is none, so it is not the average of matrices. A sum is a `PMatSum`.

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
        pairs = self._mapping_of_layers(data)
        return {layer_id: self._checked_factors(layer_id, pair) for layer_id, pair in pairs.items()}

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

    @classmethod
    def _data_restored(
        cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any], layers: LayerCollection
    ) -> dict[str, KroneckerFactors]:
        return {
            layer_id: KroneckerFactors(
                tensors[f"{layer_id}.inputs"],
                tensors[f"{layer_id}.outputs"],
                KroneckerLayout(**description[layer_id]),
            )
            for layer_id in layers
        }

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "PMatKFAC":
        return self._changed(change, self.symmetric, self.n_examples)

    def _changed(
        self, change: Callable[[Tensor], Tensor], symmetric: bool, n_examples: int | None = None
    ) -> "PMatKFAC":
        """A matrix whose factors are changed one by one."""
        changed = {
            layer_id: replace(factors, inputs=change(factors.inputs), outputs=change(factors.outputs))
            for layer_id, factors in self.data.items()
        }
        return self._like(changed, symmetric, n_examples)

    def _eigen_kind(self) -> type[PMatEKFAC]:
        return PMatEKFAC

    def decompose(self) -> "PMatKFAC":
        """Decompose all factors now, and keep their eigenvalues and eigenvectors for `solve`, `inverse` and the spectrum.

        Without this call, the first of those operations does it. Processes that have computed the matrix together share the
        work, factor by factor: all of them have to call this. Later operations need no other process.

        Returns:
            The matrix itself.

        Raises:
            UnsupportedOperationError: The matrix is a product.
            DistributedError: Another process of the group failed, or is elsewhere.

        Example:
            >>> from nngeo_core import LayerCollection, LinearLayer
            >>> layers = LayerCollection({"fc": LinearLayer(2, 1, bias=False)})
            >>> F = PMatKFAC(data={"fc": (torch.eye(2), torch.tensor([[3.0]]))}, layer_collection=layers).decompose()
            >>> F.solve(PVector(layers, vector_repr=torch.ones(2)), regul=1.0).get_flat_representation()
            tensor([0.2500, 0.2500])
        """
        group, what = None if self.generator is None else self.generator.group, "the eigendecompositions of KFAC"
        with telling(group, what):
            self._check_symmetric("eigenvectors of the factors", "solve needs none")
            if group is not None and group.size > 1:  # whether or not this process has some already
                with torch.inference_mode(False), torch.no_grad():
                    found = shared_spectra(self.data, group, what)
                self._cached("spectra", lambda: found)
            self._spectra()
        return self

    def _spectra(self) -> dict[str, FactorSpectrum]:
        """The eigendecompositions of all factors, computed once."""
        return self._cached("spectra", lambda: {layer_id: spectrum(factors) for layer_id, factors in self.data.items()})

    def _eigenblocks(self) -> dict[str, EigenBlock]:
        return self._cached(
            "eigenblocks", lambda: {layer_id: found.block() for layer_id, found in self._spectra().items()}
        )

    def _layout(self, layer_id: str) -> KroneckerLayout:
        return self.data[layer_id].layout

    def _diagonal(self, layer_id: str) -> Tensor:
        return diagonal(self.data[layer_id])

    def _block(self, layer_id: str, split_weight_bias: bool) -> Tensor:
        return dense_block(self.data[layer_id], split_weight_bias)

    def _mv(self, v: Tensor) -> Tensor:
        return self._by_layer(v, lambda layer_id, matrix: multiply(self.data[layer_id], matrix))

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
        act = self._factored_solve if use_pi and self.symmetric else self._solve
        found: PVector | Tensor = self._on_vectors(lambda rows: act(rows, checked), v)
        return found

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        if not self.symmetric:
            return self._solve_product(v, regul)
        nulls = self._cached("nulls", lambda: {name: null_width(found) for name, found in self._spectra().items()})

        def divide(layer_id: str, matrix: Tensor) -> Tensor:
            if regul and nulls[layer_id]:
                return solve_beside_null_space(
                    self._spectra()[layer_id], nulls[layer_id], matrix, regul, block_name(layer_id)
                )
            return self._divided(layer_id, matrix, regul)

        return self._by_layer(v, divide)

    def _factored_solve(self, v: Tensor, regul: float) -> Tensor:
        def divide(layer_id: str, matrix: Tensor) -> Tensor:
            found = self._spectra()[layer_id]
            damped = found.products(*factored_damping(self.data[layer_id], regul))
            check_invertible(damped, regul, block_name(layer_id))
            return EigenBlock(found.basis, damped.reciprocal_()).multiply(matrix)

        return self._by_layer(v, divide)

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

    def _inverse(self, regul: float) -> Any:
        self._check_symmetric("the inverse", "use solve(v, regul=0) for its products")
        return super()._inverse(regul)

    def _pinv(self) -> "PMatKFAC":
        return self._changed(pseudo_inverse, self.symmetric)

    def _sqrt(self) -> "PMatKFAC":
        return self._like({layer_id: found.root(f"layer '{layer_id}'") for layer_id, found in self._spectra().items()})

    def _singular_values(self, what: str) -> Tensor:
        if self.symmetric:
            return super()._singular_values(what)
        return torch.cat([singular_values(factors).flatten() for factors in self.data.values()])

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

    def _add(self, other: "PMatKFAC") -> PMatSum:
        return PMatSum([self, other])

    def _scaled(self, scalar: float | Tensor) -> "PMatKFAC":
        scaled = {
            layer_id: replace(factors, outputs=factors.outputs * scalar) for layer_id, factors in self.data.items()
        }
        return self._like(scaled, self.symmetric, self.n_examples)

    def trace(self) -> Tensor:
        """The trace, 0-dimensional: sum over layers and groups of tr A tr G."""
        return torch.stack([diagonal(factors).sum() for factors in self.data.values()]).sum()

    def _norm_per_layer(self) -> dict[str, Tensor]:
        return {layer_id: euclidean_norm(norms(factors)) for layer_id, factors in self.data.items()}

    def _averaged(self, examples: Any, decay: float, progress: bool) -> tuple[dict[str, Any], int | None]:
        self._check_symmetric("an average", "update the matrices before they are multiplied")
        new = type(self)(
            self.generator, examples=examples, layer_collection=self.layer_collection, progress=progress
        ).to(self.dtype, self.device)
        found = {layer_id: averaged(factors, new.data[layer_id], decay) for layer_id, factors in self.data.items()}
        for layer_id, factors in found.items():
            if factors is None:
                self._unsupported(
                    f"the average over layer '{layer_id}' of blocks with different groups", "compute both from examples"
                )
        return found, new.n_examples
