"""The Jacobian of examples that is known by its products, and its two maps."""

from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from nngeo_core.conventions import result_dtype
from nngeo_core.matrices.maps import JacobianMap, PullBack, PushForward
from nngeo_core.parallel.group import Group
from nngeo_core.parallel.outputs import check_equally_many
from nngeo_core.sweep.examples import move_batch
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.processes import together
from nngeo_core.sweep.untouched import undisturbed
from nngeo_core.vectors.fvector import FVector
from nngeo_core.vectors.pvector import PVector
from nngeo_ntk.dense_jacobian import dense_jacobian
from nngeo_ntk.recorded import Recorded

__all__ = [
    "ImplicitMap",
    "PullBackImplicit",
    "PushForwardImplicit",
    "common_outputs",
    "product_dtype",
    "pull_back",
    "push_forward",
]


def common_outputs(generator: Generator, examples: Recorded, others: Recorded | None = None) -> int:
    """c, from a forward pass over one example, and the same on all processes that share a computation.

    Raises:
        ShapeError: Two processes have examples with different numbers of outputs.
    """
    group, source = generator.group, others if not len(examples) and others is not None else examples
    with together(group, "counting the outputs") as found:
        if len(source):
            with undisturbed(generator.model, generator.device), torch.no_grad():
                found[0] = generator.outputs(move_batch(source.one(0), generator.device), 1).numel()
    return check_equally_many(found, "counting the outputs")


def push_forward(generator: Generator, v: PVector, examples: Recorded) -> Tensor:
    """J v for the examples of all processes, shape (c, n)."""
    group = generator.group
    if group is None:
        return generator.jvp(v, examples).vector_repr
    group.check_same(v.get_flat_representation(), "the vector that J multiplies")
    with group.together("J v"):
        mine = generator.jvp(v, examples).vector_repr if len(examples) else None
    return torch.cat([part for part in group.gather(mine, "J v") if part is not None], 1)


def pull_back(generator: Generator, u: Tensor, examples: Recorded) -> Tensor:
    """J^T u, shape (d,), summed over the examples of all processes, for u of shape (c, n)."""
    group = generator.group
    if group is None:
        return generator.vjp(FVector(u), examples).get_flat_representation()
    group.check_same(u, "the vector that J^T multiplies")
    with group.together("J^T u"):
        mine = u[:, examples.start : examples.start + len(examples)]
        if len(examples):
            found = generator.vjp(FVector(mine), examples).get_flat_representation()
        else:
            found = torch.zeros(generator.layer_collection.numel(), dtype=product_dtype(generator), device=u.device)
    group.sum_(found, "J^T u")
    return found


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
        if generator.group is not None:
            _ = self._outputs  # which all processes find out together

    @cached_property
    def _outputs(self) -> int:
        return common_outputs(self.generator, self.examples)

    def size(self) -> tuple[int, int, int]:
        """(c, n, d)."""
        return self._outputs, self.examples.total, self.layer_collection.numel()

    @property
    def _group(self) -> Group | None:
        return self.generator.group

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
        return push_forward(self.generator, PVector(self.layer_collection, vector_repr=v), self.examples)


class PullBackImplicit(ImplicitMap, PullBack):
    """J^T u by one backward pass for each batch; nothing is stored."""

    name = "implicit"

    @property
    def T(self) -> PushForward:
        """The push-forward of the same examples."""
        return PushForwardImplicit(self.generator, self.examples)

    def _mv(self, u: Tensor) -> Tensor:
        return pull_back(self.generator, u, self.examples)
