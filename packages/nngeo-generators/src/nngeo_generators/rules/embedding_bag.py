"""Embedding bags: sums, means and maxima of rows of a table."""

from typing import Any

import torch
from torch import Tensor, nn

from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.jacobians.index import IndexJacobian
from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers.layer import Layer
from nngeo_core.layers.rule import Call, LayerRule
from nngeo_generators.rules.embedding import check_table, without_padding
from nngeo_generators.rules.weight_and_bias import weight_and_bias, weight_layout

__all__ = ["EmbeddingBagRule"]


class EmbeddingBagRule(LayerRule):
    """J = sum_s w_s e_index_s (x) g over the look-ups s of a bag; w = 1 for a sum, 1 / count for a mean, or as given.

    A maximum takes each feature from another row, so its Jacobian has no structure: exact, and dense.
    """

    name = "embedding-bag"
    module_types = (nn.EmbeddingBag,)

    def describe(self, module: nn.Module) -> Layer:
        """Weight (num_embeddings, embedding_dim)."""
        return weight_and_bias(module)

    def check(self, module: nn.Module) -> None:
        """Raise on `max_norm`, `scale_grad_by_freq` and `sparse`."""
        assert isinstance(module, nn.EmbeddingBag)
        check_table(module)

    def structure(self, module: nn.Module, names: tuple[str, ...]) -> Structure:
        """Rows looked up, unless the largest entries are taken."""
        if isinstance(module, nn.EmbeddingBag) and module.mode == "max":
            return Structure()
        return Structure(weight_layout(module, names, transposed=True), diagonal_inputs=True)

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor, names: tuple[str, ...]
    ) -> LayerJacobian:
        """Bags of different lengths are filled up with look-ups that have no derivative."""
        assert isinstance(module, nn.EmbeddingBag)
        index = without_padding(_in_bags(module, call, call.tensor("input", 0), -1), module.padding_idx)
        if module.mode == "max":
            rows = module.num_embeddings * module.embedding_dim
            largest = call.once("largest", lambda: _largest(module.weight.detach(), index))
            return DenseJacobian(IndexJacobian(largest, output_gradients.unsqueeze(3), rows).to_dense())
        weights = _weights(module, call, index, output_gradients.dtype)
        g = torch.einsum("cng,ns->cnsg", output_gradients, weights)  # c direction, n bag, s look-up, g feature
        return IndexJacobian(index, g, module.num_embeddings)


def _argument(call: Call, keyword: str, position: int) -> Any:
    return call.arguments[position] if position < len(call.arguments) else call.keywords.get(keyword)


def _in_bags(module: nn.EmbeddingBag, call: Call, values: Tensor, fill: float) -> Tensor:
    """One value for each look-up, as (n, s): a row for each bag, filled up to the longest."""
    if values.ndim == 2:
        return values
    offsets = _argument(call, "offsets", 1)
    if offsets is None:
        raise UnsupportedLayerError(f"'{call.path}' was called with a 1-dimensional input and no offsets")
    ends = offsets[1:] if module.include_last_offset else torch.cat((offsets[1:], offsets.new_tensor([len(values)])))
    starts = offsets[: len(ends)]
    place = starts.unsqueeze(1) + torch.arange(int((ends - starts).max()), device=offsets.device)
    filled = torch.cat((values, values.new_tensor([fill])))
    return filled[torch.where(place < ends.unsqueeze(1), place, len(values))]


def _weights(module: nn.EmbeddingBag, call: Call, index: Tensor, dtype: torch.dtype) -> Tensor:
    """w, shape (n, s)."""
    given = _argument(call, "per_sample_weights", 2)
    if given is not None:
        return _in_bags(module, call, given, 0.0).to(dtype)
    kept = (index >= 0).to(dtype)
    return kept / kept.sum(1, keepdim=True).clamp(min=1) if module.mode == "mean" else kept


def _largest(weight: Tensor, index: Tensor) -> Tensor:
    """For each feature of each bag, the place of its largest weight in the flat table, shape (n, G); -1 for an empty bag."""
    index = torch.cat((index, index.new_full((len(index), 1), -1)), 1)
    found = weight[index.clamp(min=0)].masked_fill((index < 0).unsqueeze(2), -torch.inf)
    row = index.gather(1, found.argmax(1))
    return torch.where(row >= 0, row * weight.shape[1] + torch.arange(weight.shape[1], device=row.device), -1)
