"""PMatEKFAC: each layer's block diagonal in a Kronecker-factored eigenbasis."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from nngeo_core.errors import NonFiniteError, ShapeError
from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.matrices.pmat import PMat
from nngeo_core.sweep.populate import collect
from nngeo_core.sweep.processes import telling
from nngeo_reprs.ekfac_sums import EigenvalueAccumulator, EKFACAccumulator
from nngeo_reprs.kronecker_basis import EigenBlock, KroneckerBasis, same_basis
from nngeo_reprs.kronecker_matrix import KroneckerMatrix
from nngeo_reprs.sum import PMatSum

__all__ = ["PMatEKFAC"]


class PMatEKFAC(KroneckerMatrix):
    """Each layer's block as U diag(w) U^T for U = U_G (x) U_A, the eigenvectors of its Kronecker factors (George et al. 2018).

    The eigenvalues are the second moments w = (1/n) sum_i sum_c (U^T J[c, i])^2 of the Jacobians in that basis, so that
    trace and diagonal in the basis are exact; of all matrices with these eigenvectors it is the nearest to the blocks of F
    in the Frobenius norm. From examples it takes two passes: the factors of `PMatKFAC`, then the eigenvalues. Memory
    sum_l (A_l^2 + G_l^2 + A_l G_l); an embedding's U_A are unit vectors, and never formed. Where eigenvalues of a factor
    coincide, its eigenvectors, and so the matrix, are one choice of several.

    Inverses, roots, pseudo-inverses (with a cut-off at d_l eps times the block's largest eigenvalue), products and sums in
    one basis, and the sum with c I stay in it. A sum of two matrices with different bases is a `PMatSum`; their product
    raises. `convert("ekfac")` of a `PMatKFAC` is exact. `update` averages the eigenvalues, in the basis that is there: when
    the model has moved far from where that was computed, make the matrix anew.

    `data` is a mapping from layer id to `EigenBlock`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nngeo_core import FIM
        >>> F = FIM(nn.Linear(2, 3), torch.ones(4, 2), "ekfac", variant="regression")
        >>> round(F.trace().item(), 4), F.data[""].values.shape
        (9.0, torch.Size([1, 3, 3]))
    """

    name = "ekfac"
    accumulator: ClassVar[type[EKFACAccumulator]] = EKFACAccumulator
    data: dict[str, EigenBlock]

    def _checked(self, data: Any) -> dict[str, EigenBlock]:
        blocks = dict(self._mapping_of_layers(data))
        for layer_id, block in blocks.items():
            self._check_block(layer_id, block)
        return blocks

    def _check_block(self, layer_id: str, block: Any) -> None:
        if not isinstance(block, EigenBlock):
            raise TypeError(f"layer '{layer_id}': the data of a PMatEKFAC are EigenBlocks, got {type(block).__name__}")
        numel, (q, outputs, width) = self.layer_collection[layer_id].numel(), block.basis.shape
        shapes = {"inputs": (q, width, width), "outputs": (q, outputs, outputs), "values": (q, outputs, width)}
        tensors = _parts(block)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if any(shape != shapes[name] for name, shape in found.items()) or math.prod(shapes["values"]) != numel:
            raise ShapeError(
                f"layer '{layer_id}' with {numel} parameters: got eigenvectors and eigenvalues of shapes {found}; expected "
                f"{shapes} of its layout, with q G A parameters in all"
            )
        if not all(map(all_finite, tensors.values())):
            raise NonFiniteError(f"layer '{layer_id}': the eigenvectors or eigenvalues have NaN or infinite entries")

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> dict[str, int | None]:
        """A^2 + G^2 + A G for each group of a layer, A counting a bias; G^2 + V G for a table of V rows."""
        numbers: dict[str, int | None] = {}
        for layer_id in layers:
            found = layers.structure(layer_id)
            if found is not None and found.factor_shapes is not None:
                inputs, outputs = (math.prod(shape) for shape in found.factor_shapes)
                numbers[layer_id] = (0 if found.diagonal_inputs else inputs) + outputs + layers[layer_id].numel()
            elif found is not None:
                numbers[layer_id] = None
        return numbers

    @classmethod
    def _made_from(cls, matrix: PMat) -> "PMatEKFAC":
        if isinstance(matrix, KroneckerMatrix):
            matrix._check_symmetric("an eigenbasis", "solve(v, regul=0) needs none")
            return matrix._as(cls, dict(matrix._eigenblocks()))
        found: PMatEKFAC = super()._made_from(matrix)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Each layer's `"<layer id>.values"`, and its eigenvectors `"<layer id>.outputs"` and `"<layer id>.inputs"`."""
        return {
            f"{layer_id}.{name}": tensor
            for layer_id, block in self.data.items()
            for name, tensor in _parts(block).items()
        }

    @classmethod
    def _data_restored(
        cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any], layers: LayerCollection
    ) -> dict[str, EigenBlock]:
        blocks = {}
        for layer_id in layers:
            inputs, outputs = tensors.get(f"{layer_id}.inputs"), tensors[f"{layer_id}.outputs"]
            basis = KroneckerBasis(inputs, outputs, KroneckerLayout(**description[layer_id]))
            blocks[layer_id] = EigenBlock(basis, tensors[f"{layer_id}.values"])
        return blocks

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "PMatEKFAC":
        changed = {
            layer_id: EigenBlock(block.basis.mapped(change), change(block.values))
            for layer_id, block in self.data.items()
        }
        return self._like(changed, self.symmetric, self.n_examples)

    def _eigen_kind(self) -> type[PMat]:
        return type(self)

    def _eigenblocks(self) -> dict[str, EigenBlock]:
        return self.data

    def _layout(self, layer_id: str) -> KroneckerLayout:
        return self.data[layer_id].basis.layout

    def _diagonal(self, layer_id: str) -> Tensor:
        return self.data[layer_id].diagonal()

    def _block(self, layer_id: str, split_weight_bias: bool) -> Tensor:
        return self.data[layer_id].dense(split_weight_bias)

    def get_KFE(self, split_weight_bias: bool = True) -> dict[str, Tensor]:
        """Each layer's eigenvectors U written out as columns, shape (d_l, d_l), in the order of `values` flattened.

        `U @ values.flatten().diag() @ U.T` is the layer's block.

        Args:
            split_weight_bias: Order the rows as flat parameters are, weights before biases; otherwise each output's bias
                follows its weights, which is the plain Kronecker product.
        """
        return {layer_id: block.basis.eigenvectors(split_weight_bias) for layer_id, block in self.data.items()}

    def _mv(self, v: Tensor) -> Tensor:
        return self._by_layer(v, lambda layer_id, matrix: self.data[layer_id].multiply(matrix))

    def _pinv(self) -> Any:
        return self._in_eigenbasis(lambda _, block: block.reciprocal_values())

    def _sqrt(self) -> Any:
        return self._in_eigenbasis(lambda layer_id, block: block.root_values(f"the block of layer '{layer_id}'"))

    def _scaled(self, scalar: float | Tensor) -> Any:
        return self._in_eigenbasis(lambda _, block: block.values * scalar, self.n_examples)

    def _mm(self, other: "PMatEKFAC") -> Any:
        if not self._shares_basis(other):
            self._unsupported(
                "the product of blocks with different eigenvectors", "use mv twice, or convert('blockdiag')"
            )
        return self._in_eigenbasis(lambda layer_id, block: block.values * other.data[layer_id].values)

    def _add(self, other: "PMatEKFAC") -> Any:
        if not self._shares_basis(other):
            return PMatSum([self, other])
        return self._in_eigenbasis(lambda layer_id, block: block.values + other.data[layer_id].values)

    def _shares_basis(self, other: "PMatEKFAC") -> bool:
        return all(same_basis(block.basis, other.data[layer_id].basis) for layer_id, block in self.data.items())

    def trace(self) -> Tensor:
        """The trace, 0-dimensional: the sum of the eigenvalues."""
        return self._eigenvalues().sum()

    def _norm_per_layer(self) -> dict[str, Tensor]:
        return {layer_id: euclidean_norm(block.values) for layer_id, block in self.data.items()}

    def update_diag(self, examples: Any, progress: bool = False) -> None:
        """Replace the eigenvalues by those of the examples at the model's current parameters, in the basis that is kept.

        One pass over the examples, which are then the ones that the matrix is averaged over.

        Args:
            examples: One batch or a loader.
            progress: Whether to show a progress bar.

        Raises:
            ValueError: The matrix has no generator.
        """
        if self.generator is None:
            raise ValueError(
                "this PMatEKFAC has no generator to compute eigenvalues from examples; it was made from data"
            )
        with telling(self.generator.group, "an update of eigenvalues"):
            self.data, self.n_examples = self._refreshed(examples, progress)

    def _averaged(self, examples: Any, decay: float, progress: bool) -> tuple[dict[str, EigenBlock], int | None]:
        """The average of the eigenvalues, in the basis that is kept."""
        new, count = self._refreshed(examples, progress)
        return {
            layer_id: EigenBlock(block.basis, decay * block.values + (1 - decay) * new[layer_id].values)
            for layer_id, block in self.data.items()
        }, count

    def _refreshed(self, examples: Any, progress: bool) -> tuple[dict[str, EigenBlock], int]:
        """The data with the eigenvalues of other examples, and their number."""
        assert self.generator is not None
        self.layer_collection.check_same(self.generator.layer_collection)
        bases = {layer_id: block.basis for layer_id, block in self.data.items()}
        sums = EigenvalueAccumulator(self.layer_collection, bases, self.accumulator.reduced)
        (found,) = collect(self.generator, examples, [sums], type(self).__name__ if progress else False)
        return {
            layer_id: EigenBlock(block.basis, found[layer_id].values.to(block.values))
            for layer_id, block in self.data.items()
        }, sums.n_examples


def _parts(block: EigenBlock) -> dict[str, Tensor]:
    """The tensors of a block by name."""
    parts = {"values": block.values, "outputs": block.basis.outputs, "inputs": block.basis.inputs}
    return {name: tensor for name, tensor in parts.items() if tensor is not None}
