"""The trace-restricted Kronecker factorization, as a representation for nngeo."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from nngeo_core import (
    Accumulator,
    JacobianBatch,
    KroneckerFactors,
    KroneckerLayout,
    LayerCollection,
    LayerCollectionMismatchError,
    LayerJacobian,
    NonFiniteError,
    PMat,
    ShapeError,
    hookimpl,
)
from nngeo_core.jacobians.contraction import blocks
from nngeo_core.linear_algebra.damping import check_definite, check_invertible
from nngeo_core.linear_algebra.symmetric import eigh

__all__ = ["PMatTKFAC", "nngeo_representations"]

nngeo_api_version = 1


def layout_of(layers: LayerCollection, layer_id: str) -> KroneckerLayout:
    """How a layer's parameters read as matrices (q, G, A); of one that multiplies no matrix, as a column (1, d_l, 1)."""
    structure = layers.structure(layer_id)
    if structure is None or structure.layout is None:
        return KroneckerLayout(groups=1, outputs=layers[layer_id].numel(), inputs=1, has_bias=False)
    return structure.layout


class TKFACAccumulator(Accumulator):
    """Sums both partial traces of every layer's block."""

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add sum J^T J and sum J J^T, where J is the matrix (G, A) of a direction, an example and a group."""
        for layer_id in self.layer_collection:
            layout = layout_of(self.layer_collection, layer_id)
            q, G, A = layout.groups, layout.outputs, layout.input_width
            inputs, outputs = (torch.zeros(q, width, width, dtype=batch.dtype, device=batch.device) for width in (A, G))
            if layer_id in batch.layers:
                _add_partial_traces(batch.layers[layer_id], layout, inputs, outputs)
            self.add(f"{layer_id}.inputs", inputs)
            self.add(f"{layer_id}.outputs", outputs)

    def finalize(self) -> dict[str, KroneckerFactors]:
        """The input factor with trace one, or zero, and the output factor, averaged over the examples."""
        return {layer_id: self._factors(layer_id) for layer_id in self.layer_collection}

    def _factors(self, layer_id: str) -> KroneckerFactors:
        inputs, outputs = self.average(f"{layer_id}.inputs"), self.average(f"{layer_id}.outputs")
        traces = inputs.diagonal(dim1=-2, dim2=-1).sum(-1).view(-1, 1, 1)
        scaled = torch.where(traces > 0, inputs / torch.where(traces > 0, traces, 1), 0)
        return KroneckerFactors(scaled, outputs, layout_of(self.layer_collection, layer_id))


def _add_partial_traces(jacobian: LayerJacobian, layout: KroneckerLayout, inputs: Tensor, outputs: Tensor) -> None:
    c, n, d = jacobian.shape
    for examples in blocks(n, c * d * jacobian.dtype.itemsize):
        J = layout.to_matrix(jacobian.dense_rows(examples))
        inputs += torch.einsum("cnqga,cnqgb->qab", J, J)  # c direction, n example, q group; g, h outputs; a, b inputs
        outputs += torch.einsum("cnqga,cnqha->qgh", J, J)


class PMatTKFAC(PMat):
    """Each layer's block as one Kronecker product with the exact trace: F_l ~ tr_A(F_l) (x) tr_G(F_l) / tr(F_l).

    With F_l = (1/n) sum vec(J) vec(J)^T over the matrices J (G, A) of examples and output directions, its partial traces are
    tr_A(F_l) = (1/n) sum J J^T and tr_G(F_l) = (1/n) sum J^T J. Without shared positions J = g a^T, and these are
    E[|a|^2 g g^T] and E[|g|^2 a a^T]: the factors of Gao et al. (2021), "A trace-restricted Kronecker-factored approximation
    to natural gradient", theorem 1. With them they are those of the exact block. Blocks between layers, and between groups
    of channels, are zero. A layer that multiplies no matrix keeps its exact block. Memory sum_l (A_l^2 + G_l^2).

    `data` is a mapping from layer id to `KroneckerFactors` with full matrices: the input factor, with trace one if it comes
    from examples, and the output factor.
    """

    name = "tkfac"
    accumulator = TKFACAccumulator
    data: dict[str, KroneckerFactors]

    def _checked(self, data: Any) -> dict[str, KroneckerFactors]:
        if not isinstance(data, Mapping) or list(data) != list(self.layer_collection):
            given = list(data) if isinstance(data, Mapping) else type(data).__name__
            raise LayerCollectionMismatchError(
                f"the data of a PMatTKFAC is a mapping with the layers {list(self.layer_collection)}, got {given}"
            )
        for layer_id, factors in data.items():
            layout, found = factors.layout, (tuple(factors.inputs.shape), tuple(factors.outputs.shape))
            q, A, G = layout.groups, layout.input_width, layout.outputs
            if found != ((q, A, A), (q, G, G)) or layout.numel != self.layer_collection[layer_id].numel():
                raise ShapeError(
                    f"layer '{layer_id}' with {self.layer_collection[layer_id].numel()} parameters: got factors of shapes "
                    f"{found[0]} and {found[1]}; expected (q, A, A) and (q, G, G) that fit {layout}"
                )
            if not (factors.inputs.isfinite().all() and factors.outputs.isfinite().all()):
                raise NonFiniteError(f"layer '{layer_id}': the factors have NaN or infinite entries")
        return dict(data)

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> dict[str, int | None]:
        """q (A^2 + G^2) for each layer."""
        layouts = {layer_id: layout_of(layers, layer_id) for layer_id in layers}
        return {layer_id: k.groups * (k.input_width**2 + k.outputs**2) for layer_id, k in layouts.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The factors by layer and side."""
        sides = ("inputs", "outputs")
        return {f"{layer_id}.{side}": getattr(f, side) for layer_id, f in self.data.items() for side in sides}

    def _data_description(self) -> dict[str, Any]:
        return {layer_id: asdict(factors.layout) for layer_id, factors in self.data.items()}

    @classmethod
    def _data_restored(
        cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any], layers: LayerCollection
    ) -> dict[str, KroneckerFactors]:
        return {
            k: KroneckerFactors(tensors[f"{k}.inputs"], tensors[f"{k}.outputs"], KroneckerLayout(**description[k]))
            for k in layers
        }

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "PMatTKFAC":
        changed = {k: replace(f, inputs=change(f.inputs), outputs=change(f.outputs)) for k, f in self.data.items()}
        return self._like(changed, self.symmetric, self.n_examples)

    def _by_layer(self, v: Tensor, act: Callable[[str, Tensor], Tensor]) -> Tensor:
        """Apply a function of a layer's id and of its part of v, read as matrices (..., q, G, A)."""
        parts = []
        for layer_id, place in self.layer_collection.slices().items():
            layout = self.data[layer_id].layout
            parts.append(layout.from_matrix(act(layer_id, layout.to_matrix(v[..., place]))))
        return torch.cat(parts, -1)

    def _mv(self, v: Tensor) -> Tensor:
        return self._by_layer(v, lambda layer_id, V: self.data[layer_id].outputs @ V @ self.data[layer_id].inputs)

    def _bases(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Of each layer: eigenvectors of the output and of the input factor, and eigenvalues (q, G, A) of their product."""

        def decompose() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
            found = {}
            for layer_id, factors in self.data.items():
                (small, left), (large, right) = eigh(factors.outputs), eigh(factors.inputs)
                found[layer_id] = (left, right, small.unsqueeze(-1) * large.unsqueeze(-2))
            return found

        return self._cached("bases", decompose)

    def _eigenvalues(self) -> Tensor:
        return torch.cat([values.flatten() for _, _, values in self._bases().values()])

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        def divide(layer_id: str, V: Tensor) -> Tensor:
            left, right, values = self._bases()[layer_id]
            check_invertible(values + regul, regul, f"the block of layer '{layer_id}'")
            return left @ (left.mT @ V @ right / (values + regul)) @ right.mT

        return self._by_layer(v, divide)

    def _sample(self, regul: float, generator: torch.Generator | None) -> Tensor:
        check_definite(self._eigenvalues() + regul, regul, "the PMatTKFAC")

        def colour(layer_id: str, Z: Tensor) -> Tensor:
            left, right, values = self._bases()[layer_id]
            return left @ (Z / (values + regul).sqrt()) @ right.mT

        return self._by_layer(self._normal((self.layer_collection.numel(),), generator), colour)

    def _scaled(self, scalar: float | Tensor) -> "PMatTKFAC":
        scaled = {k: replace(f, inputs=f.inputs.clone(), outputs=f.outputs * scalar) for k, f in self.data.items()}
        return self._like(scaled, n_examples=self.n_examples)

    def _inverse(self, regul: float) -> NoReturn:
        self._unsupported(f"(M + {regul:g} I)^-1", f"solve(v, regul={regul:g}) gives its products")

    def _mm(self, other: PMat) -> NoReturn:
        self._unsupported("a product of two of them", "use mv twice")

    def _add(self, other: PMat) -> NoReturn:
        self._unsupported("a sum of two Kronecker products", "add the products mv of both")

    def trace(self) -> Tensor:
        """The trace, 0-dimensional: that of F, if it comes from examples."""
        return self.get_diag().sum()

    def frobenius_norm(self) -> Tensor:
        """The Frobenius norm, 0-dimensional."""
        return torch.stack(list(self._norm_per_layer().values())).norm()

    def _norm_per_layer(self) -> dict[str, Tensor]:
        return {
            layer_id: (torch.linalg.matrix_norm(f.inputs) * torch.linalg.matrix_norm(f.outputs)).norm()
            for layer_id, f in self.data.items()
        }

    def get_diag(self) -> Tensor:
        """The diagonal, shape (d,)."""
        parts = []
        for factors in self.data.values():
            outputs, inputs = (part.diagonal(dim1=-2, dim2=-1) for part in (factors.outputs, factors.inputs))
            parts.append(factors.layout.from_matrix(outputs.unsqueeze(-1) * inputs.unsqueeze(-2)))
        return torch.cat(parts)

    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """All entries, shape (d, d)."""
        return self._mv(torch.eye(self.size(0), dtype=self.dtype, device=self.device))


@hookimpl
def nngeo_representations() -> list[type[PMat]]:
    """The representation, for users to name."""
    return [PMatTKFAC]
