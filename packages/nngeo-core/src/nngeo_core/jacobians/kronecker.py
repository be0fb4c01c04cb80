"""KroneckerJacobian: layers that multiply a weight matrix with an input."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.contraction import (
    blocks,
    grams_are_cheaper,
    norm_by_positions_is_cheaper,
    outputs_come_first,
    outputs_go_at_once,
    pairs_are_cheaper,
)
from nngeo_core.jacobians.gram import add_gram_of_positions_
from nngeo_core.jacobians.layout import KroneckerFactors, KroneckerLayout
from nngeo_core.jacobians.masks import joined_masks
from nngeo_core.jacobians.squares import add_squares_by_pairs_, squared_norm_by_positions

__all__ = ["KroneckerJacobian"]

_ADDED_IN_A_ROW = 4096
"""Examples whose squares one product adds: with one output one after the other, and of a million float32 keeps four digits."""


class KroneckerJacobian(LayerJacobian):
    """J[c, n] = sum_s g[c, n, s] (x) a[n, s], for each of q groups (Goodfellow 2015; Grosse & Martens 2016).

    The bias is kept apart: its input is the constant 1, which is never appended to `a`.

    Args:
        a: Inputs, shape (n, s, q, A), or a function that returns them when first needed.
        g: Derivatives of the c directions with respect to the layer's outputs, shape (c, n, s, q, G).
        layout: Where weight and bias lie in the flat parameters.
        mask: Which positions count in the Kronecker factors, shape (n, s); None for all.
    """

    def __init__(
        self,
        a: Tensor | Callable[[], Tensor],
        g: Tensor,
        layout: KroneckerLayout,
        mask: Tensor | None = None,
    ) -> None:
        self._a = a
        self.g = g
        self.layout = layout
        self.mask = mask

    @cached_property
    def a(self) -> Tensor:
        """The inputs, shape (n, s, q, A)."""
        return self._a if isinstance(self._a, Tensor) else self._a()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, n, d)."""
        return self.g.shape[0], self.g.shape[1], self.layout.numel

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the output gradients."""
        return self.g.dtype

    @property
    def device(self) -> torch.device:
        """The device of the output gradients."""
        return self.g.device

    @property
    def nbytes(self) -> int:
        """Bytes of inputs and output gradients."""
        return int(self.a.nbytes + self.g.nbytes)

    @property
    def input_nbytes(self) -> int:
        """Bytes of the inputs."""
        return int(self.a.nbytes)

    @property
    def positions(self) -> int:
        """s."""
        return self.g.shape[2]

    def joined(self, other: LayerJacobian) -> LayerJacobian | None:
        """The uses of one weight in several calls are so many more positions."""
        if not isinstance(other, KroneckerJacobian) or other.layout != self.layout:
            return None
        mask = joined_masks(self.mask, other.mask, self.g, other.g)
        return KroneckerJacobian(
            lambda: torch.cat((self.a, other.a), 1), torch.cat((self.g, other.g), 2), self.layout, mask
        )

    def with_mask(self, mask: Tensor) -> LayerJacobian:
        """The same J with the mask, if it is for as many positions."""
        return KroneckerJacobian(self._a, self.g, self.layout, mask) if mask.shape[1] == self.positions else self

    def reduced(self) -> LayerJacobian:
        """One position: the inputs' average over the positions that count, the sum of their gradients, and a bias's 1."""
        if self.mask is None:
            if self.positions <= 1:
                return self
            return KroneckerJacobian(lambda: self.a.mean(1, keepdim=True), self.g.sum(2, keepdim=True), self.layout)
        kept = self.mask.to(self.dtype)
        weights = kept / kept.sum(1, keepdim=True).clamp(min=1)
        return KroneckerJacobian(
            lambda: torch.einsum("nsqa,ns->nqa", self.a, weights).unsqueeze(1),
            torch.einsum("cnsqg,ns->cnqg", self.g, kept).unsqueeze(2),
            self.layout,
            self.mask.any(1, keepdim=True),
        )

    @property
    def pairs(self) -> KroneckerLayout | None:
        """The layout, with a bias."""
        return self.layout if self.layout.has_bias else None

    def to_dense(self) -> Tensor:
        """J, shape (c, n, d)."""
        weight = torch.stack([self._gradients(g) for g in self.g])
        return self.layout.pack(weight, self._bias_gradients())

    def to(self, dtype: torch.dtype) -> "KroneckerJacobian":
        """The same J in another dtype."""
        return KroneckerJacobian(lambda: self.a.to(dtype), self.g.to(dtype), self.layout, self.mask)

    def of_examples(self, examples: slice | Tensor) -> "KroneckerJacobian":
        """J of some examples."""
        mask = None if self.mask is None else self.mask[examples]
        return KroneckerJacobian(self.a[examples], self.g[:, examples], self.layout, mask)

    def jvp(self, v: Tensor) -> Tensor:
        """J v, shape (c, n): the layer's response to the parameter change v, then its product with g."""
        weight, bias = self.layout.unpack(v)
        response = torch.einsum("nsqa,qga->nsqg", self.a, weight)  # n example, s position, q group, a input, g output
        if bias is not None:
            response = response + bias
        return torch.einsum("cnsqg,nsqg->cn", self.g, response)

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u, shape (d,): the directions are summed before the inputs are touched."""
        g = torch.einsum("cn,cnsqg->qgns", u, self.g).flatten(2)
        flat = torch.empty(self.layout.numel, dtype=g.dtype, device=g.device)
        weight, bias = self.layout.unpack(flat)
        torch.bmm(g, self.a.permute(2, 0, 1, 3).flatten(1, 2), out=weight)
        if bias is not None:
            torch.sum(g, 2, out=bias)
        return flat if self.layout.leading_inputs == 1 else self.layout.pack(weight, bias)

    def residual(self, gradients: Sequence[Tensor], u: Tensor) -> list[Tensor]:
        """Gradients of weight and bias without J^T u, subtracted within the product."""
        weight, *bias = gradients
        plain = self.layout.leading_inputs == 1 and self.layout.inputs and weight.dtype == self.dtype
        if not plain:
            return super().residual(gradients, u)
        g = torch.einsum("cn,cnsqg->qgns", u, self.g).flatten(2)
        a = self.a.permute(2, 0, 1, 3).flatten(1, 2)
        matrix = weight.reshape(self.layout.groups, self.layout.outputs, self.layout.inputs)
        return [torch.baddbmm(matrix, g, a, alpha=-1).flatten(), *(part - g.sum(2).flatten() for part in bias)]

    def sum_of_squares(self) -> Tensor:
        """The diagonal of J^T J, shape (d,)."""
        total = self.g.new_zeros(self.layout.numel)
        self.add_squares_to(total)
        return total

    def add_squares_to(self, total: Tensor) -> None:
        """Add the diagonal of J^T J; without shared positions it is one product of squared inputs and gradients."""
        if total.dtype != self.dtype:
            return super().add_squares_to(total)
        weight, bias = self.layout.unpack(total)
        if self.positions == 1:
            g = _summed_squares(self.g[:, :, 0]).permute(1, 2, 0)  # q, G, n
            a = self.a[:, 0].square().transpose(0, 1)
            for some in blocks(a.shape[1], 1, _ADDED_IN_A_ROW):
                if g.shape[1] == 1:  # to one row torch adds product after product
                    weight += g[:, :, some] @ a[:, some]
                else:
                    weight.baddbmm_(g[:, :, some], a[:, some])
            squares = g.sum(2)
        else:
            self._add_squares_of_gradients(weight)
            squares = _summed_squares(self.g.sum(2)).sum(0)
        if bias is not None:
            bias += squares
        if self.layout.leading_inputs != 1:
            total.copy_(self.layout.pack(weight, bias))

    def _add_squares_of_gradients(self, total: Tensor) -> None:
        """Add to `total` (q, G, A): by pairs of positions, or form per-example gradients and square them."""
        if pairs_are_cheaper(len(self.g), self.positions):
            return add_squares_by_pairs_(total, self.a, self.g)
        for examples in self._example_blocks():
            for g in self.g[:, examples]:
                total += self._gradients(g, examples).square_().sum(0)

    def squared_norm(self) -> Tensor:
        """The trace of J^T J, 0-dimensional."""
        if self.positions != 1:
            layout = self.layout
            if norm_by_positions_is_cheaper(len(self.g), self.positions, layout.outputs, layout.inputs):
                return squared_norm_by_positions(self.a, self.g, layout.has_bias)
            return self.sum_of_squares().sum()
        inputs = self.a[:, 0].square().sum(-1) + self.layout.has_bias
        return (self.g[:, :, 0].square().sum((0, 3)) * inputs).sum()

    def second_moment(self) -> Tensor:
        """J^T J, shape (d, d)."""
        c, n, _ = self.shape
        if outputs_come_first(c, n, self.positions, self.layout.groups):
            return self._second_moment_outputs_first()
        return super().second_moment()

    def _second_moment_outputs_first(self) -> Tensor:
        """(sum_c g g^T) (x) (a a^T), summed over examples, for s = q = 1."""
        g, a = self.g[:, :, 0, 0], self.a[:, 0, 0]
        at_once = outputs_go_at_once(len(a), self.layout.outputs, self.layout.inputs, a.element_size())
        total = self._entries_at_once(g, a) if at_once else self._entries_by_output(g, a)
        if self.layout.leading_inputs == 1:
            return total
        order, weights = torch.arange(len(total), device=total.device), self.layout.weight_numel
        order[:weights] = self.layout.pack(order[:weights].view(1, self.layout.outputs, self.layout.inputs), None)
        return total[order.unsqueeze(1), order]

    def _entries_at_once(self, g: Tensor, a: Tensor) -> Tensor:
        """Entries between weights (G, A), and biases after them, by one product for all pairs of outputs and of inputs."""
        height, width = self.layout.outputs, self.layout.input_width
        if self.layout.has_bias:
            a = torch.cat((a, a.new_ones(len(a), 1)), 1)
        outputs = torch.einsum("cng,cnh->ngh", g, g).flatten(1)  # g, h outputs
        inputs = torch.einsum("na,nb->nab", a, a).flatten(1)  # a, b inputs
        block = (outputs.T @ inputs).view(height, height, width, width).transpose(1, 2)
        layout = KroneckerLayout(1, height, self.layout.inputs, self.layout.has_bias)
        columns = layout.from_matrix(block.reshape(height, width, 1, height, width))
        return layout.from_matrix(columns.movedim(-1, 0).unsqueeze(1)).T

    def _entries_by_output(self, g: Tensor, a: Tensor) -> Tensor:
        """The same output by output: products of the inputs with themselves, weighted for each output from there on."""
        height, width, weights = self.layout.outputs, self.layout.inputs, self.layout.weight_numel
        total = a.new_zeros(self.layout.numel, self.layout.numel)
        for i in range(height):
            among = torch.einsum("cn,cnh->nh", g[:, :, i], g)  # h outputs
            own, later = slice(i * width, (i + 1) * width), slice(i * width, weights)
            for rows in blocks(len(a), (height - i) * width * a.element_size()):
                weighted = (among[rows, i:].unsqueeze(2) * a[rows].unsqueeze(1)).flatten(1)
                total[own, later].addmm_(a[rows].T, weighted)
            total[own.stop : weights, own] = total[own, own.stop : weights].T
            if self.layout.has_bias:
                total[own, weights:] = a.T @ among
                total[weights + i, weights:] = among.sum(0)
        total[weights:, :weights] = total[:weights, weights:].T
        return total

    def gram(self, other: LayerJacobian) -> Tensor:
        """J J'^T with another Jacobian of the same layer, shape (c, n, c', n')."""
        if not isinstance(other, KroneckerJacobian) or other.layout != self.layout:
            return super().gram(other)
        (c, n, s), (k, m, t) = self.g.shape[:3], other.g.shape[:3]
        if grams_are_cheaper((c, n, s), (k, m, t), self.layout.outputs, self.layout.inputs):
            return self._gram_from_positions(other)
        return super().gram(other)

    def _gram_from_positions(self, other: "KroneckerJacobian") -> Tensor:
        """Sum over pairs of positions of (g . g') (a . a' + 1), the 1 with a bias."""
        # n, m examples; s, t positions; q group; a input; c, k directions
        inputs = torch.einsum("nsqa,mtqa->qnsmt", self.a, other.a) + self.layout.has_bias
        total = self.g.new_zeros(*self.shape[:2], *other.shape[:2])
        add_gram_of_positions_(total, inputs, self.g, other.g)
        return total

    def bias_cross(self) -> Tensor:
        """The entries of J^T J between each weight and its output's bias, in the weight's order, shape (d_weight,)."""
        bias = self._bias_gradients()
        if bias is None:
            return super().bias_cross()
        if self.positions == 1:
            g = _summed_squares(self.g[:, :, 0]).permute(1, 2, 0)  # q, G, n
            return self.layout.pack(g @ self.a[:, 0].transpose(0, 1), None)
        total = self.g.new_zeros(self.layout.groups, self.layout.outputs, self.layout.inputs)
        for examples in self._example_blocks():
            for g, b in zip(self.g[:, examples], bias[:, examples], strict=True):
                total += (self._gradients(g, examples) * b.unsqueeze(-1)).sum(0)
        return self.layout.pack(total, None)

    def kronecker_factors(self, inputs: bool = True) -> KroneckerFactors:
        """sum_{n,s} a a^T with the bias's constant input, and sum_{c,n} (1/s) sum_s g g^T, for each group.

        With a mask, an example's sum and average run over the positions that count.
        """
        if self.mask is not None:
            kept = self.mask.sum(1, keepdim=True).expand_as(self.mask)[self.mask]
            g = self.g[:, self.mask].unsqueeze(2) / kept.to(self.dtype).sqrt().view(-1, 1, 1, 1)
            return KroneckerJacobian(self.a[self.mask].unsqueeze(1), g, self.layout).kronecker_factors(inputs)
        width = self.layout.input_width
        factor = self.g.new_zeros(self.layout.groups, width, width)
        if inputs and self.layout.has_bias:
            sums = self.a.sum((0, 1))
            factor[:, :-1, -1] = factor[:, -1, :-1] = sums
            factor[:, -1, -1] = self.g.shape[1] * self.positions
        if inputs:
            factor[:, : self.layout.inputs, : self.layout.inputs] = _second_moment_over_positions(self.a)
        outputs = _second_moment_over_positions(self.g.flatten(0, 1)) / max(1, self.positions)
        return KroneckerFactors(factor, outputs, self.layout)

    def rotate(self, input_basis: Tensor | None, output_basis: Tensor) -> "KroneckerJacobian":
        """The same structure with inputs a U and output gradients g V; the bias becomes one more input."""
        g = torch.einsum("cnsqg,qgh->cnsqh", self.g, output_basis)
        if input_basis is None:
            return KroneckerJacobian(self._a, g, self.layout)
        layout = KroneckerLayout(self.layout.groups, output_basis.shape[-1], input_basis.shape[-1], has_bias=False)
        return KroneckerJacobian(lambda: self._rotated_inputs(input_basis), g, layout)

    def _rotated_inputs(self, basis: Tensor) -> Tensor:
        """(a, 1) U without appending the 1."""
        rotated = torch.einsum("nsqa,qab->nsqb", self.a, basis[:, : self.layout.inputs])
        return rotated + basis[:, -1] if self.layout.has_bias else rotated

    def _gradients(self, g: Tensor, examples: slice = slice(None)) -> Tensor:
        """Per-example gradients sum_s g (x) a of one direction's g (m, s, q, G), shape (m, q, G, A)."""
        return torch.matmul(g.permute(2, 0, 3, 1), self.a[examples].permute(2, 0, 1, 3)).transpose(0, 1)

    def _bias_gradients(self) -> Tensor | None:
        """Per-example gradients of the bias, shape (c, n, q, G)."""
        return self.g.sum(2) if self.layout.has_bias else None

    def _example_blocks(self) -> Iterator[slice]:
        """Slices of the examples whose per-example gradients of one direction fit a block."""
        return blocks(self.g.shape[1], self.layout.weight_numel * self.g.element_size())


def _summed_squares(x: Tensor) -> Tensor:
    """sum_c x^2 of x (c, ...), without a tensor of all squares."""
    total = x[0].square() if len(x) else x.new_zeros(x.shape[1:])
    for part in x[1:]:
        total.addcmul_(part, part)
    return total


def _second_moment_over_positions(x: Tensor) -> Tensor:
    """sum_{m,s} x x^T of x (m, s, q, W), shape (q, W, W)."""
    m, s, _, width = x.shape
    examples_and_positions_merge = m == 1 or s == 1 or x.stride(0) == s * x.stride(1)
    if examples_and_positions_merge or s < width:
        rows = x.permute(2, 3, 0, 1).flatten(2)
        return (rows[0] @ rows[0].T).unsqueeze(0) if len(rows) == 1 else rows @ rows.mT
    per_example = x.permute(2, 0, 3, 1)
    return (per_example @ per_example.mT).sum(1)
