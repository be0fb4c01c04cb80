"""PMatQuasiDiag: the diagonal, and what is between the weights of a neuron and its bias."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, overload

import torch
from torch import Tensor

from nngeo_core.conventions import DEFAULT_REGUL, checked_regul
from nngeo_core.errors import LayerCollectionMismatchError, NonFiniteError, ShapeError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.matrices.eigen import Eigendecomposition
from nngeo_core.matrices.pmat import PMat
from nngeo_core.parallel.group import Group
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.vectors.pvector import PVector
from nngeo_reprs.arrow import ArrowBlock
from nngeo_reprs.layouts import common_layouts, layouts_from_state, layouts_to_state

__all__ = ["PMatQuasiDiag"]

METHODS = ("exact", "ollivier")


class QuasiDiagAccumulator(Accumulator):
    """Sums the squares of each layer's Jacobian, and its products of weights with biases where they pair."""

    signed = True
    structured = True

    def __init__(self, layer_collection: LayerCollection) -> None:
        super().__init__(layer_collection)
        self.layouts: dict[str, KroneckerLayout] = {}

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add each layer's entries; a layer that was not called adds nothing."""
        for layer_id, layer in self.layer_collection.items():
            squares = f"{layer_id}.squares"
            if squares not in self.sums:
                self.sums[squares] = torch.zeros(layer.numel(), dtype=batch.dtype, device=batch.device)
            if layer_id not in batch.layers:
                continue
            jacobian = batch.layers[layer_id]
            if batch.sign == 1:
                jacobian.add_squares_to(self.sums[squares])
            else:
                self.sums[squares] += batch.sign * jacobian.sum_of_squares()
            if jacobian.pairs is not None:
                self.layouts[layer_id] = jacobian.pairs
                self.add(f"{layer_id}.cross", batch.sign * jacobian.bias_cross().to(batch.dtype))

    def merge(self, other: Accumulator) -> None:
        """Add the sums of other examples."""
        super().merge(other)
        if isinstance(other, QuasiDiagAccumulator):
            self.layouts = other.layouts | self.layouts

    def reduce_(self, group: Group, what: str) -> None:
        """Take in the sums of all processes, and where they lie in the parameters, which not every process may know."""
        self.layouts = common_layouts(self.layouts, group, what)
        self._sum_over(group, what)

    def state_dict(self) -> dict[str, Tensor]:
        """The example count and the sums, and which bias goes with which weights."""
        return {**super().state_dict(), **layouts_to_state(self.layouts)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self.layouts = layouts_from_state(state)

    def finalize(self) -> dict[str, ArrowBlock]:
        """Each layer's block, averaged over examples."""
        return {layer_id: self._block(layer_id) for layer_id in self.layer_collection}

    def _block(self, layer_id: str) -> ArrowBlock:
        diagonal, layout = self.average(f"{layer_id}.squares"), self.layouts.get(layer_id)
        cross = None if layout is None else self.average(f"{layer_id}.cross")
        return ArrowBlock.from_flat(diagonal, cross, layout)


class PMatQuasiDiag(PMat):
    """The diagonal of F, and its entries between the weights of each output neuron and its bias (Ollivier 2015).

    Exact in these entries; all others are zero; memory d and one number for each weight of a neuron that has a bias. One
    arrow-shaped matrix for each neuron, and so cheap; but leaving out the entries between weights can make it INDEFINITE,
    as it does where inputs are far from centred: then samples, the log-determinant and natural-gradient steps need a
    damping as large as the most negative eigenvalue, which `eigendecomposition` and the error tell, or
    `solve(method="ollivier")`, positive where each pair of a weight and its bias is.

    Pairs exist in layers that multiply a weight matrix with their input (linear, convolutions, projections) and in
    normalisations, where each channel has a scale and a shift. A layer without a bias, a table, or one without known
    structure (`nn.Bilinear`, parametrized modules) has no pairs, and holds its diagonal alone.

    `norm(2)` bisects an equation for each neuron. All eigenvalues, and `norm(-2)` from them, take the eigendecomposition of
    each neuron's (A + 1) x (A + 1) matrix, as many at once as fit some megabytes: (A + 1)^3 operations for each.
    Eigenvectors are computed when asked for.

    `data` is a mapping from layer id to `ArrowBlock`.

    Example:
        >>> from torch import nn
        >>> from nngeo_core import FIM
        >>> FIM(nn.Linear(2, 1), torch.tensor([[2.0, 3.0]]), "quasidiag", variant="regression").get_dense_tensor()
        tensor([[4., 0., 2.],
                [0., 9., 3.],
                [2., 3., 1.]])
    """

    name = "quasidiag"
    accumulator = QuasiDiagAccumulator
    data: dict[str, ArrowBlock]

    def _checked(self, data: Any) -> dict[str, ArrowBlock]:
        if not isinstance(data, Mapping) or list(data) != list(self.layer_collection):
            given = list(data) if isinstance(data, Mapping) else type(data).__name__
            raise LayerCollectionMismatchError(
                f"the data of a PMatQuasiDiag is a mapping with the layers {list(self.layer_collection)}, got {given}"
            )
        for layer_id, block in data.items():
            self._check_block(layer_id, block)
        return dict(data)

    def _check_block(self, layer_id: str, block: Any) -> None:
        if not isinstance(block, ArrowBlock):
            raise TypeError(
                f"layer '{layer_id}': the data of a PMatQuasiDiag are ArrowBlocks, got {type(block).__name__}"
            )
        layout, numel = block.layout, self.layer_collection[layer_id].numel()
        expected = (layout.groups, layout.outputs, layout.inputs + 1), (layout.groups, layout.outputs, layout.inputs)
        found = (tuple(block.diagonal.shape), tuple(block.cross.shape))
        if found != expected or not layout.has_bias or layout.numel != numel:
            raise ShapeError(
                f"layer '{layer_id}' with {numel} parameters: got a diagonal and cross terms of shapes {found[0]} and "
                f"{found[1]}; expected {expected[0]} and {expected[1]}, for a layout of as many parameters with biases"
            )
        if not (all_finite(block.diagonal) and all_finite(block.cross)):
            raise NonFiniteError(f"layer '{layer_id}': the diagonal or the cross terms have NaN or infinite entries")

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> dict[str, int]:
        """One for each parameter, and one more for each weight that has a bias; of a layer without a matrix it is not known."""
        numbers = {}
        for layer_id, layer in layers.items():
            found = layers.structure(layer_id)
            if found is not None and found.layout is not None:
                numbers[layer_id] = layer.numel() + found.layout.has_bias * found.layout.weight_numel
        return numbers

    def tensors(self) -> dict[str, Tensor]:
        """Each layer's `"<layer id>.diagonal"` and `"<layer id>.cross"`."""
        return {
            f"{layer_id}.{name}": getattr(block, name)
            for layer_id, block in self.data.items()
            for name in ("diagonal", "cross")
        }

    def _data_description(self) -> dict[str, Any]:
        return {layer_id: asdict(block.layout) for layer_id, block in self.data.items()}

    @classmethod
    def _data_restored(
        cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any], layers: LayerCollection
    ) -> dict[str, ArrowBlock]:
        blocks = {}
        for layer_id in layers:
            diagonal, cross = tensors[f"{layer_id}.diagonal"], tensors[f"{layer_id}.cross"]
            blocks[layer_id] = ArrowBlock(diagonal, cross, KroneckerLayout(**description[layer_id]))
        return blocks

    def _changed(self, change: Callable[[ArrowBlock], ArrowBlock], n_examples: int | None = None) -> "PMatQuasiDiag":
        return self._like({layer_id: change(block) for layer_id, block in self.data.items()}, n_examples=n_examples)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "PMatQuasiDiag":
        return self._changed(lambda block: block.mapped(change), self.n_examples)

    def _by_layer(self, v: Tensor, act: Callable[[str, Tensor], Tensor]) -> Tensor:
        """Apply a function of each layer's matrix (..., q, G, A + 1) to v (..., d)."""
        parts = []
        for layer_id, place in self.layer_collection.slices().items():
            layout = self.data[layer_id].layout
            parts.append(layout.from_matrix(act(layer_id, layout.to_matrix(v[..., place]))))
        return torch.cat(parts, -1)

    def _mv(self, v: Tensor) -> Tensor:
        return self._by_layer(v, lambda layer_id, matrix: self.data[layer_id].multiply(matrix))

    @overload
    def solve(self, v: PVector, regul: float | Tensor = ..., method: str = ...) -> PVector: ...
    @overload
    def solve(self, v: Tensor, regul: float | Tensor = ..., method: str = ...) -> Tensor: ...
    def solve(
        self, v: PVector | Tensor, regul: float | Tensor = DEFAULT_REGUL, method: str = "exact"
    ) -> PVector | Tensor:
        """(M + regul I)^-1 v, exactly, whether M is definite or not.

        Args:
            v: The right-hand side: a vector, or a batch of flat ones, a tensor (k, d) or (c, n, d).
            regul: The damping r.
            method: "exact", or "ollivier" for his elimination, an approximation: x_w = (b v_w - c v_b) / (w b - c^2) for
                each weight, then x_b = (v_b - sum c x_w) / b, where w and b are the damped entries of weight and bias and c
                the one between them (the quasi-diagonal reduction of Ollivier 2015; Marceau-Caron & Ollivier 2016).

        Raises:
            ValueError: `regul` is negative or no single number, or the method is unknown.
            LayerCollectionMismatchError: v is about other layers.
            NotPositiveDefiniteError: M + regul I, or a pair of it for "ollivier", is singular to working precision.
        """
        if method not in METHODS:
            raise ValueError(f"method is one of {', '.join(map(repr, METHODS))}; got {method!r}")
        checked = checked_regul(regul)
        act = self._solve if method == "exact" else self._solve_by_pairs
        found: PVector | Tensor = self._on_vectors(lambda rows: act(rows, checked), v)
        return found

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        return self._by_layer(v, lambda name, matrix: self.data[name].solve(matrix, regul, _what(name)))

    def _solve_by_pairs(self, v: Tensor, regul: float) -> Tensor:
        return self._by_layer(v, lambda name, matrix: self.data[name].solve_by_pairs(matrix, regul, _what(name)))

    def _inverse(self, regul: float) -> Any:
        self._unsupported(
            f"(M + {regul:g} I)^-1, which fills each neuron's block,", f"use solve(v, regul={regul:g}) for its products"
        )

    def _mm(self, other: "PMatQuasiDiag") -> Any:
        self._unsupported(
            "the product of two, which fills each neuron's block,", "use mv twice, or convert('blockdiag')"
        )

    def _sqrt(self) -> Any:
        self._unsupported("a square root, which fills each neuron's block,", "convert('blockdiag') has one")

    def _pinv(self) -> Any:
        self._unsupported(
            "a pseudo-inverse, which fills each neuron's block,",
            "convert('blockdiag') has one, and solve(v, regul) solves",
        )

    def _add(self, other: "PMatQuasiDiag") -> "PMatQuasiDiag":
        sums = {layer_id: block.plus(other.data[layer_id]) for layer_id, block in self.data.items()}
        for layer_id, block in sums.items():
            if block is None:
                self._unsupported(
                    f"the sum over layer '{layer_id}' of blocks with other pairs", "add their products mv"
                )
        return self._like(sums)

    def _add_identity(self, scaling: Tensor) -> "PMatQuasiDiag":
        return self._changed(lambda block: block.shifted(scaling.to(block.diagonal)), self.n_examples)

    def _scaled(self, scalar: float | Tensor) -> "PMatQuasiDiag":
        return self._changed(lambda block: block.mapped(lambda tensor: tensor * scalar), self.n_examples)

    def _eigenvalues(self) -> Tensor:
        return self._cached(
            "eigenvalues",
            lambda: torch.cat([part.flatten() for block in self.data.values() for part in block.eigenvalues()]),
        )

    def _largest_singular_value(self, tol: float) -> Tensor:
        parts = [
            torch.maximum(block.highest().amax(), -block.lowest().amin())
            for block in self.data.values()
            if block.diagonal.numel()
        ]
        return torch.stack(parts).amax()

    def _eigendecomposition(self, k: int | None) -> Eigendecomposition:
        values, order = self._eigenvalues().sort()

        def rows(places: Tensor) -> Tensor:
            chosen = order[places]
            whole = values.new_zeros(len(chosen), len(values))
            for layer_id, place in self.layer_collection.slices().items():
                here = (chosen >= place.start) & (chosen < place.stop)
                whole[here, place] = self.data[layer_id].eigenvectors(chosen[here] - place.start)
            return whole

        return Eigendecomposition(self.layer_collection, values, rows).leading(k)

    def _logdet(self, regul: float) -> Tensor:
        parts = []
        for layer_id, block in self.data.items():
            weights, _, complement = block.definite(regul, _what(layer_id))
            parts.append(weights.log().sum() + complement.log().sum())
        return torch.stack(parts).sum()

    def _sample(self, regul: float, generator: torch.Generator | None) -> Tensor:
        """L^-T D^-1/2 z for M + r I = L D L^T, in which the row of a bias alone has entries beside the diagonal."""
        parts = []
        for layer_id, block in self.data.items():
            weights, ratio, complement = block.definite(regul, _what(layer_id))
            normal = self._normal(tuple(block.diagonal.shape), generator)
            bias = normal[..., -1:] / complement.sqrt()
            matrix = torch.cat((normal[..., :-1] / weights.sqrt() - ratio * bias, bias), -1)
            parts.append(block.layout.from_matrix(matrix))
        return torch.cat(parts)

    def trace(self) -> Tensor:
        """The trace, 0-dimensional."""
        return torch.stack([block.diagonal.sum() for block in self.data.values()]).sum()

    def frobenius_norm(self) -> Tensor:
        """The Frobenius norm, 0-dimensional."""
        return euclidean_norm(torch.stack(list(self._norm_per_layer().values())))

    def _norm_per_layer(self) -> dict[str, Tensor]:
        return {layer_id: block.norm() for layer_id, block in self.data.items()}

    def get_diag(self) -> Tensor:
        """The diagonal, shape (d,)."""
        return torch.cat([block.layout.from_matrix(block.diagonal) for block in self.data.values()])

    def _blocks(self) -> dict[str, Tensor]:
        return {layer_id: block.dense() for layer_id, block in self.data.items()}

    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """All entries, shape (d, d).

        Args:
            split_weight_bias: Flat parameters have a layer's weights before its biases: always true of this representation.
        """
        whole: Tensor = torch.block_diag(*self._blocks().values())
        return whole


def _what(layer_id: str) -> str:
    return f"the block of layer '{layer_id}'"
