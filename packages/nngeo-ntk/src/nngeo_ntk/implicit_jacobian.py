"""The Jacobian of examples that is known by its products, and its two maps."""

from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from nngeo_core.conventions import result_dtype
from nngeo_core.matrices.maps import JacobianMap, PullBack, PushForward
from nngeo_core.sweep.examples import move_batch
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.untouched import undisturbed
from nngeo_core.vectors.fvector import FVector
from nngeo_core.vectors.pvector import PVector
from nngeo_ntk.dense_jacobian import dense_jacobian
from nngeo_ntk.recorded import Recorded

__all__ = ["ImplicitMap", "PullBackImplicit", "PushForwardImplicit", "count_outputs", "product_dtype"]


def count_outputs(generator: Generator, examples: Recorded) -> int:
    """c, from a forward pass over one example."""
    with undisturbed(generator.model, generator.device), torch.no_grad():
        return generator.outputs(move_batch(examples.one(0), generator.device), 1).numel()


def product_dtype(generator: Generator) -> torch.dtype:
    """The dtype of products with the Jacobian: that of the parameters, at least float32."""
    named = generator.layer_collection.named_parameters(generator.model)
    return result_dtype(reduce(torch.promote_types, (parameter.dtype for _, parameter in named)))


class ImplicitMap(JacobianMap):
    """A map that computes each product from the model and stores nothing but the examples.

    Args:
        generator: Differentiates the model.
        examples: One batch or a loader, read once.
        progress: Taken for the sake of one signature; there is nothing to wait for here.
    """

    def __init__(self, generator: Generator, examples: Any, *, progress: bool = False) -> None:
        self.generator: Generator = generator
        self.layer_collection = generator.layer_collection
        self.examples = Recorded.of(generator, examples)

    @cached_property
    def _outputs(self) -> int:
        return count_outputs(self.generator, self.examples)

    def size(self) -> tuple[int, int, int]:
        """(c, n, d)."""
        return self._outputs, len(self.examples), self.layer_collection.numel()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products."""
        return product_dtype(self.generator)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.generator.device

    def get_dense_tensor(self) -> Tensor:
        """J, shape (c, n, d), computed anew."""
        return dense_jacobian(self.generator, self.examples)


class PushForwardImplicit(ImplicitMap, PushForward):
    """J v by one pass of forward-mode differentiation for each batch; nothing is stored."""

    name = "implicit"

    @property
    def T(self) -> PullBack:
        """The pull-back of the same examples."""
        return PullBackImplicit(self.generator, self.examples)

    def _mv(self, v: Tensor) -> Tensor:
        return self.generator.jvp(PVector(self.layer_collection, vector_repr=v), self.examples).vector_repr


class PullBackImplicit(ImplicitMap, PullBack):
    """J^T u by one backward pass for each batch; nothing is stored."""

    name = "implicit"

    @property
    def T(self) -> PushForward:
        """The push-forward of the same examples."""
        return PushForwardImplicit(self.generator, self.examples)

    def _mv(self, u: Tensor) -> Tensor:
        return self.generator.vjp(FVector(u), self.examples).get_flat_representation()
