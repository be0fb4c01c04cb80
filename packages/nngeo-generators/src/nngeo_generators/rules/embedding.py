"""Embeddings: rows of a table, looked up by their index."""

from torch import Tensor, nn

from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.jacobians.index import IndexJacobian
from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers.layer import Layer
from nngeo_core.layers.rule import Call, LayerRule
from nngeo_generators.rules.weight_and_bias import weight_and_bias, weight_layout

__all__ = ["EmbeddingRule", "check_table", "without_padding"]


class EmbeddingRule(LayerRule):
    """J = sum_s e_index_s (x) g_s over the look-ups s of an example; the row of `padding_idx` has no derivative."""

    name = "embedding"
    module_types = (nn.Embedding,)

    def describe(self, module: nn.Module) -> Layer:
        """Weight (num_embeddings, embedding_dim)."""
        return weight_and_bias(module)

    def check(self, module: nn.Module) -> None:
        """Raise on `max_norm`, `scale_grad_by_freq` and `sparse`."""
        assert isinstance(module, nn.Embedding)
        check_table(module)

    def structure(self, module: nn.Module, names: tuple[str, ...]) -> Structure:
        """Rows looked up."""
        return Structure(weight_layout(module, names, transposed=True), diagonal_inputs=True)

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor, names: tuple[str, ...]
    ) -> IndexJacobian:
        """Indices without an axis of examples were looked up for all of them."""
        assert isinstance(module, nn.Embedding)
        index = call.tensor("input", 0).expand(output_gradients.shape[1:-1])
        g = output_gradients.unsqueeze(2).flatten(2, -2)
        return IndexJacobian(
            without_padding(index.unsqueeze(1).flatten(1), module.padding_idx), g, module.num_embeddings
        )


def check_table(module: nn.Embedding | nn.EmbeddingBag) -> None:
    """Raise for a table whose gradient is not the derivative of what it returns, or not a plain tensor.

    Raises:
        UnsupportedLayerError: Naming the option.
    """
    if module.max_norm is not None:
        raise UnsupportedLayerError(
            f"max_norm={module.max_norm:g} rescales rows of the weight whenever they are looked up; expected None: rescale "
            "them once, then set module.max_norm = None"
        )
    if module.scale_grad_by_freq:
        raise UnsupportedLayerError(
            "scale_grad_by_freq=True divides gradients by counts over the batch, so they are no derivatives of one example; "
            "expected False: set module.scale_grad_by_freq = False"
        )
    if module.sparse:
        raise UnsupportedLayerError(
            "sparse=True makes gradients sparse tensors, which cannot be compared with dense ones; expected False, which "
            "changes no value: set module.sparse = False"
        )


def without_padding(index: Tensor, padding_idx: int | None) -> Tensor:
    """The indices, -1 in place of the padding's, whose row has no derivative."""
    return index if padding_idx is None else index.masked_fill(index == padding_idx, -1)
