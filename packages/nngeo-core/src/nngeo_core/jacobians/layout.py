"""How a layer's flat parameters read as the matrix whose Kronecker structure is used."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["KroneckerFactors", "KroneckerLayout", "matrix_layout"]


@dataclass(frozen=True)
class KroneckerLayout:
    """The order in which q weight matrices of G outputs and A inputs, and q biases of G outputs, lie in a flat vector.

    The weight is stored as (q, A1, G, A2) with A = A1 A2. Linear layers and convolutions have A1 = 1 (out x in), embeddings
    and GPT-2's linear layer A2 = 1 (in x out), transposed convolutions A1 input channels and A2 pixels of the kernel.

    Attributes:
        groups: q.
        outputs: G, of one group.
        inputs: A, of one group, the constant input of a bias not counted.
        has_bias: Whether (q, G) biases follow the weight.
        leading_inputs: A1.
    """

    groups: int
    outputs: int
    inputs: int
    has_bias: bool
    leading_inputs: int = 1

    @property
    def weight_numel(self) -> int:
        """Number of weights, q G A."""
        return self.groups * self.outputs * self.inputs

    @property
    def input_width(self) -> int:
        """Rows of the input factor: A, or A + 1 with a bias."""
        return self.inputs + self.has_bias

    @property
    def numel(self) -> int:
        """Number of parameters d."""
        return self.weight_numel + self.has_bias * self.groups * self.outputs

    def pack(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The flat (..., d) of a weight (..., q, G, A) and a bias (..., q, G)."""
        if self.leading_inputs != 1:
            weight = weight.unflatten(-1, (self.leading_inputs, -1)).movedim(-3, -2)
        weight = weight.reshape(*weight.shape[: -3 - (self.leading_inputs != 1)], self.weight_numel)
        return weight if bias is None else torch.cat((weight, bias.flatten(-2)), -1)

    def unpack(self, flat: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weight (..., q, G, A) and the bias (..., q, G) of a flat (..., d): views of it if `leading_inputs` is 1."""
        sizes = (self.groups, self.leading_inputs, self.outputs, self.inputs // self.leading_inputs)
        stored = flat[..., : self.weight_numel].unflatten(-1, sizes)
        weight = stored.movedim(-3, -2).flatten(-2)
        bias = flat[..., self.weight_numel :].unflatten(-1, (self.groups, self.outputs)) if self.has_bias else None
        return weight, bias

    def to_matrix(self, flat: Tensor) -> Tensor:
        """The (..., q, G, A) matrices of a flat (..., d), or (..., q, G, A + 1) with the bias as their last column."""
        weight, bias = self.unpack(flat)
        return weight if bias is None else torch.cat((weight, bias.unsqueeze(-1)), -1)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of `to_matrix`."""
        if not self.has_bias:
            return self.pack(matrix, None)
        return self.pack(matrix[..., :-1], matrix[..., -1])

    def write(self, matrix: Tensor, flat: Tensor) -> None:
        """Put what `from_matrix` returns into a flat (..., d), in place."""
        if self.leading_inputs != 1:
            flat.copy_(self.from_matrix(matrix))
            return
        self.unpack(flat)[0].copy_(matrix[..., : self.inputs])
        if self.has_bias:
            self.unpack(flat)[1].copy_(matrix[..., -1])  # type: ignore[union-attr]


def matrix_layout(shapes: Mapping[str, tuple[int, ...]], groups: int = 1, transposed: bool = False) -> KroneckerLayout:
    """The layout of a weight, a bias or both, from the shapes in which a module stores them.

    Args:
        shapes: Those of "weight" and "bias", as far as they are meant: weight (q G, A1, *kernel), bias (q G,).
        groups: q.
        transposed: Whether the weight is stored with its inputs first, (q A1, G, *kernel).

    Example:
        >>> matrix_layout({"weight": (6, 2, 3, 3), "bias": (6,)}, groups=2)
        KroneckerLayout(groups=2, outputs=3, inputs=18, has_bias=True, leading_inputs=1)
    """
    has_bias = "bias" in shapes
    if "weight" not in shapes:
        return KroneckerLayout(groups, shapes["bias"][0] // groups, 0, has_bias)
    first, second, *kernel = shapes["weight"]
    if not transposed:
        return KroneckerLayout(groups, first // groups, second * math.prod(kernel), has_bias)
    channels = first // groups
    return KroneckerLayout(groups, second, channels * math.prod(kernel), has_bias, leading_inputs=max(1, channels))


@dataclass(frozen=True, repr=False)
class KroneckerFactors:
    """Two factors whose Kronecker product stands for the block of one layer.

    Attributes:
        inputs: Shape (q, A, A), or (q, A + 1, A + 1) when the layout has a bias; of a diagonal factor, such as an
            embedding's, only the diagonal, with one axis less.
        outputs: Shape (q, G, G).
        layout: Where their product lies in the flat parameters.
    """

    inputs: Tensor
    outputs: Tensor
    layout: KroneckerLayout

    def __repr__(self) -> str:
        """Shapes, dtype and device."""
        shapes = f"inputs {tuple(self.inputs.shape)}, outputs {tuple(self.outputs.shape)}"
        return f"KroneckerFactors({shapes}, {self.outputs.dtype}, {self.outputs.device})"
