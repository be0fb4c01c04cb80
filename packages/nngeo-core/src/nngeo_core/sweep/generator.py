"""Generator: what differentiates a model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from collections.abc import Generator as PythonGenerator
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import ShapeError, UnsupportedOperationError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.choice import chosen_likelihood
from nngeo_core.sweep.autocast import callers_autocast
from nngeo_core.sweep.examples import Batch, call_model, iterate_batches
from nngeo_core.sweep.untouched import undisturbed
from nngeo_core.vectors.checked import checked_flat
from nngeo_core.vectors.fvector import FVector
from nngeo_core.vectors.pvector import PVector

__all__ = ["Generator"]

_CHECKS = ("first-batch", "every-batch", "off")


class Generator(ABC):
    """Jacobians of a model's outputs on examples, structured or as products.

    Args:
        model: The network; it is left untouched.
        likelihood: What the outputs mean, an object or a registered name; supplies output directions and metric.
        function: Maps a batch to outputs, `function(*batch)` or `function(batch)`; None calls the model.
        layer_collection: The parameters to differentiate; None takes all of the model.
        device: Where batches are moved; None takes the parameters' device.
        n_output: The expected number of classes or values; None accepts what the first batch shows.
        memory_budget: Bytes that captured tensors may take together; None leaves it to the generator.
        check: When to compare with a plain gradient pass: "first-batch", "every-batch" or "off".

    Raises:
        ValueError: The model is on another device, has no parameters in the collection or some that autograd cannot
            differentiate, or an option is unknown.
        LayerCollectionMismatchError: The model lacks parameters of the collection.
    """

    name: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood | str,
        function: Callable[..., Any] | None = None,
        layer_collection: LayerCollection | None = None,
        device: torch.device | str | None = None,
        n_output: int | None = None,
        memory_budget: int | None = None,
        check: str = "first-batch",
    ) -> None:
        if check not in _CHECKS:
            raise ValueError(f"check is one of {_CHECKS}, got {check!r}")
        if memory_budget is not None and memory_budget <= 0:
            raise ValueError(f"memory_budget is a positive number of bytes, got {memory_budget}")
        self.model = model
        self.likelihood = chosen_likelihood(likelihood)
        self.function = function
        self.layer_collection = LayerCollection.from_model(model) if layer_collection is None else layer_collection
        _check_differentiable(model, self.layer_collection)
        self.device = _common_device(model, self.layer_collection, device)
        self.n_output = n_output
        self.memory_budget = memory_budget
        self.check = check

    def restricted(self, layer_collection: LayerCollection) -> "Generator":
        """A generator about other layers of the same model, mostly some of these; all else is the same.

        Args:
            layer_collection: The parameters to differentiate.
        """
        return type(self)(
            self.model,
            self.likelihood,
            self.function,
            layer_collection,
            self.device,
            self.n_output,
            self.memory_budget,
            self.check,
        )

    def jacobian(self, batch: Batch, directions: slice | None = None) -> JacobianBatch:
        """The Jacobians of one batch.

        Args:
            batch: Some examples.
            directions: Which of their output directions, with start and stop given; None takes all.
        """
        with undisturbed(self.model, self.device), torch.no_grad():
            return self._jacobian(batch, directions)

    @abstractmethod
    def _jacobian(self, batch: Batch, directions: slice | None) -> JacobianBatch:
        """The Jacobians of one batch."""

    @abstractmethod
    def stream(self, batches: Iterable[Batch]) -> PythonGenerator[JacobianBatch, None, None]:
        """The Jacobians of all examples and directions, in slices that fit the memory budget.

        Whoever reads the stream closes it, and does so inside `undisturbed`, as `populate` does.
        """

    def jvp(self, v: PVector, examples: Any) -> FVector:
        """The push-forward J v: how the outputs change along v, shape (c, n).

        Args:
            v: A vector about the generator's layers.
            examples: One batch or a loader.

        Raises:
            LayerCollectionMismatchError: v is about other layers.
            ValueError: There are no examples.
        """
        flat = checked_flat(v, self.layer_collection, self._dtype())
        with undisturbed(self.model, self.device), torch.no_grad():
            return FVector(self._jvp(flat, iterate_batches(examples)))

    @abstractmethod
    def _jvp(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        """J v, shape (c, n), for v of shape (d,)."""

    def vjp(self, u: FVector, examples: Any) -> PVector:
        """The pull-back J^T u, summed over examples and outputs.

        Args:
            u: Shape (c, n), its examples in the order of `examples`.
            examples: One batch or a loader.

        Raises:
            ShapeError: u does not have the shape (c, n) of the outputs.
            ValueError: There are no examples.
        """
        if not isinstance(u, FVector):
            raise TypeError(f"expected an FVector, got {type(u).__name__}; FVector(vector_repr=tensor) makes one")
        with undisturbed(self.model, self.device), torch.no_grad():
            return PVector(self.layer_collection, self._vjp(u.vector_repr, iterate_batches(examples)))

    @abstractmethod
    def _vjp(self, u: Tensor, batches: Iterable[Batch]) -> Tensor:
        """J^T u, shape (d,), for u of shape (c, n)."""

    def product(self, v: PVector, examples: Any) -> PVector:
        """F v = (1/n) sum_i J_i^T L_i J_i v, with nothing stored.

        Args:
            v: A vector about the generator's layers.
            examples: One batch or a loader.

        Raises:
            LayerCollectionMismatchError: v is about other layers.
            ValueError: There are no examples.
            UnsupportedOperationError: The likelihood subtracts the mean gradient.
        """
        if self.likelihood.centred:
            raise UnsupportedOperationError(
                "products without a matrix do not subtract the mean gradient; use mv of a dense, block-diagonal or diagonal "
                "matrix, or centred=False"
            )
        flat = checked_flat(v, self.layer_collection, self._dtype())
        with undisturbed(self.model, self.device), torch.no_grad():
            product = self._product(flat, iterate_batches(examples))
        return PVector(self.layer_collection, product)

    @abstractmethod
    def _product(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        """F v, shape (d,), for v of shape (d,)."""

    def quadratic_form(self, v: PVector, examples: Any) -> Tensor:
        """v^T F v = (1/n) sum_i (J_i v)^T L_i (J_i v), 0-dimensional, with nothing stored.

        Takes and raises what `product` does.
        """
        flat = checked_flat(v, self.layer_collection, self._dtype())
        with undisturbed(self.model, self.device), torch.no_grad():
            return self._quadratic_form(flat, iterate_batches(examples))

    def _quadratic_form(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        """v^T F v for v of shape (d,); a generator that has J v without J^T needs no more."""
        return v @ self._product(v, batches)

    def _dtype(self) -> torch.dtype:
        """The dtype of products: that of the parameters, at least float32."""
        dtypes = [parameter.dtype for _, parameter in self.layer_collection.named_parameters(self.model)]
        return result_dtype(reduce(torch.promote_types, dtypes))

    def outputs(self, batch: Batch, n: int) -> Tensor:
        """The outputs of the n examples of a batch, checked.

        Raises:
            ShapeError: The first dimension is not n, or the outputs are not what the likelihood expects.
            ValueError: `n_output` is wrong.
        """
        with callers_autocast(self.device):
            outputs = call_model(self.model, self.function, batch)
        if outputs.shape[:1] != (n,):
            raise ShapeError(
                f"the batch has {n} examples and the outputs have shape {tuple(outputs.shape)}; the first dimension of "
                "inputs and outputs is that of the examples. Give a `function` that returns them so"
            )
        self.likelihood.check(outputs)
        found = self.likelihood.n_output(outputs)
        if self.n_output not in (None, found):
            raise ValueError(f"n_output={self.n_output} was given, and the model returns {found} outputs per example")
        return outputs

    def count_directions(self, outputs: Tensor, batch: Batch) -> tuple[int, int]:
        """How many directions the outputs of a batch have, and how many of those, the last ones, enter with a minus sign."""
        outputs, targets = _precise(outputs), self.likelihood.targets(batch)
        return self.likelihood.n_directions(outputs, targets), self.likelihood.n_negative(outputs, targets)

    def directions(self, outputs: Tensor, batch: Batch, chosen: slice) -> Tensor:
        """The chosen output directions of a batch, shape (c, n, ...), zero at positions that do not count."""
        found = self.likelihood.directions(_precise(outputs), self.likelihood.targets(batch), chosen)
        mask = self.position_mask(outputs, batch)
        return found if mask is None else found * self.likelihood.spread(mask, outputs)

    def metric(self, outputs: Tensor, u: Tensor, batch: Batch) -> Tensor:
        """L u for the outputs of a batch, and u of their shape; positions that do not count are left out."""
        targets, mask = self.likelihood.targets(batch), self.position_mask(outputs, batch)
        if mask is None:
            return self.likelihood.metric(_precise(outputs), _precise(u), targets)
        kept = self.likelihood.spread(mask, outputs)
        return self.likelihood.metric(_precise(outputs), _precise(u) * kept, targets) * kept

    def position_mask(self, outputs: Tensor, batch: Batch) -> Tensor | None:
        """Which positions of each example count, shape (n, T), or None for all.

        Raises:
            ShapeError: The batch tells it for another number of positions than the outputs have.
        """
        mask = self.likelihood.position_mask(batch)
        if mask is not None and mask.numel() != outputs.numel() // max(1, self.likelihood.n_output(outputs)):
            raise ShapeError(
                f"the batch tells which of {tuple(mask.shape)} (n, T) positions count, and the outputs have shape "
                f"{tuple(outputs.shape)}: labels and outputs must have the same positions"
            )
        return mask


def _precise(tensor: Tensor) -> Tensor:
    """In the dtype that sums are kept in: at least float32."""
    return tensor.to(result_dtype(tensor.dtype))


def _check_differentiable(model: nn.Module, layers: LayerCollection) -> None:
    """Raise unless every parameter is real and was made where autograd sees it."""
    for name, parameter in layers.named_parameters(model):
        if not parameter.is_floating_point():
            raise ValueError(f"parameter '{name}' is {parameter.dtype}; expected real floating-point numbers")
        if parameter.is_inference():
            raise ValueError(
                f"parameter '{name}' was made under torch.inference_mode() and cannot be differentiated; build the model "
                "outside of it, and load the values into that one"
            )


def _common_device(model: nn.Module, layers: LayerCollection, device: torch.device | str | None) -> torch.device:
    """The one device of the collection's parameters, which is the one asked for."""
    devices = {parameter.device for _, parameter in layers.named_parameters(model)}
    if not devices:
        raise ValueError("the layer collection has no parameters: there is nothing to differentiate")
    if len(devices) > 1:
        raise ValueError(f"the model's parameters are on several devices, {sorted(map(str, devices))}; expected one")
    found = devices.pop()
    wanted = found if device is None else torch.device(device)
    if wanted.type != found.type or wanted.index not in (None, found.index):
        raise ValueError(f"device={str(wanted)!r} was given and the model is on {str(found)!r}; call model.to(device)")
    return found
