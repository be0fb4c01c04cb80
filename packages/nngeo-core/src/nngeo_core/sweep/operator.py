"""OperatorGenerator: what has products with a matrix about a model's parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import ShapeError, UnsupportedOperationError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.unwrapping import unwrapped
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.choice import chosen_likelihood
from nngeo_core.parallel.group import Group
from nngeo_core.parallel.outputs import check_outputs
from nngeo_core.sweep.autocast import callers_autocast
from nngeo_core.sweep.examples import Batch, Counted, call_model, iterate_batches
from nngeo_core.sweep.untouched import undisturbed
from nngeo_core.vectors.checked import checked_flat
from nngeo_core.vectors.pvector import PVector

__all__ = ["OperatorGenerator"]

_CHECKS = ("first-batch", "every-batch", "off")


class OperatorGenerator(ABC):
    """A symmetric matrix M, an average over examples, known by its products with vectors.

    `Generator` is one that has Jacobians too, which all representations are made of. One that has none, such as that of
    the Hessian, serves the representations implicit, dense and block-diagonal.

    Args:
        model: The network; it is left untouched.
        likelihood: What the outputs mean, an object or a registered name; supplies output directions and metric.
        function: Maps a batch to outputs, `function(*batch)` or `function(batch)`; None calls the model.
        layer_collection: The parameters to differentiate; None takes all of the model.
        device: Where batches are moved; None takes the parameters' device.
        n_output: The expected number of classes or values; None accepts what the first batch shows.
        memory_budget: Bytes that the tensors kept for some examples may take together, in a sweep or a product: batches
            beyond it are cut. None leaves it to the generator.
        check: When to compare with a plain gradient pass: "first-batch", "every-batch" or "off".

    Attributes:
        seen_outputs: The numbers of classes or values that outputs had so far; those of outputs whose positions count as
            values are left out.

    Raises:
        ValueError: The model is on another device, has no parameters in the collection or some that autograd cannot
            differentiate, or an option is unknown.
        LayerCollectionMismatchError: The model lacks parameters of the collection.
    """

    name: ClassVar[str]
    group: Group | None = None
    """The processes whose examples products and sums go over; None for those of this process alone."""

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
        self.model = unwrapped(model)
        self._wrapper = None if self.model is model else model
        self.likelihood = chosen_likelihood(likelihood)
        self.function = function
        self.layer_collection = LayerCollection.from_model(model) if layer_collection is None else layer_collection
        named = self.layer_collection.named_parameters(model)
        _check_differentiable(named)
        self.device = _common_device([parameter for _, parameter in named], device)
        self.n_output = n_output
        self.memory_budget = memory_budget
        self.check = check
        self.seen_outputs: set[int] = set()
        self._compared: Group | None = None  # the processes that are known to have equally many outputs

    def product(self, v: PVector, examples: Any) -> PVector:
        """M v with nothing stored; for Jacobians, F v = (1/n) sum_i J_i^T L_i J_i v.

        Args:
            v: A vector about the generator's layers.
            examples: One batch or a loader.

        Raises:
            LayerCollectionMismatchError: v is about other layers.
            ValueError: There are no examples.
            UnsupportedOperationError: The likelihood subtracts the mean gradient.
        """
        flat = checked_flat(v, self.layer_collection, self._dtype())
        return PVector(self.layer_collection, self.flat_product(flat, examples))

    def flat_product(self, flat: Tensor, examples: Any) -> Tensor:
        """`product` of a flat vector (d,) in the dtype of products, shape (d,)."""
        self._check_uncentred()
        with undisturbed(self.model, self.device), torch.no_grad():
            (found,) = self._averaged(
                "a product", examples, lambda batches: [self._product(flat, batches)], [flat], flat
            )
        return found

    def _averaged(
        self,
        what: str,
        examples: Any,
        local: Callable[[Iterator[Batch]], list[Tensor]],
        like: Sequence[Tensor],
        v: Tensor | None = None,
    ) -> list[Tensor]:
        """What is averaged over the examples, with a group over those of all its processes.

        Args:
            what: The operation, for errors.
            examples: One batch or a loader.
            local: The averages over some batches.
            like: Tensors of the results' shapes and dtypes.
            v: What has to be the same on all processes.
        """
        batches, group = iterate_batches(examples), self.group
        if group is None or group.size == 1:
            return local(batches)
        if v is not None:
            group.check_same(v, f"the vector of {what}")
        with group.together(what) as counts:
            seen = Counted(batches)
            found = [part * seen.n for part in local(seen)] if seen.any() else [torch.zeros_like(part) for part in like]
            found = [part.contiguous() for part in found]  # of which the products are the same bits everywhere
            counts[0] = seen.n
        if self._compared is not group:
            check_outputs(self.seen_outputs, group, what)
            self._compared = group
        n = sum(counts)
        if not n:
            raise ValueError("no process was given any examples; a matrix needs at least one")
        for part in found:
            group.sum_(part, what)
        return [part / n for part in found]

    @abstractmethod
    def _product(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        """M v, shape (d,), for v of shape (d,)."""

    def quadratic_form(self, v: PVector, examples: Any) -> Tensor:
        """v^T M v with nothing stored, 0-dimensional; for Jacobians, (1/n) sum_i (J_i v)^T L_i (J_i v).

        Takes and raises what `product` does.
        """
        return self.flat_quadratic_form(checked_flat(v, self.layer_collection, self._dtype()), examples)

    def flat_quadratic_form(self, flat: Tensor, examples: Any) -> Tensor:
        """`quadratic_form` of a flat vector (d,) in the dtype of products."""
        self._check_uncentred()
        with undisturbed(self.model, self.device), torch.no_grad():
            form = [flat.new_zeros(())]
            (found,) = self._averaged(
                "a quadratic form", examples, lambda batches: [self._quadratic_form(flat, batches)], form, flat
            )
        return found

    def _quadratic_form(self, v: Tensor, batches: Iterable[Batch]) -> Tensor:
        """v^T M v for v of shape (d,)."""
        return v @ self._product(v, batches)

    def _dtype(self) -> torch.dtype:
        """The dtype of products: that of the parameters, at least float32."""
        dtypes = {parameter.dtype for _, parameter in self.layer_collection.named_parameters(self.model)}
        return result_dtype(reduce(torch.promote_types, dtypes))

    def blocks(self, places: Sequence[slice], examples: Any) -> list[Tensor]:
        """Some diagonal blocks of M, such as those of the layers.

        Args:
            places: Where each block lies in a flat vector.
            examples: One batch or a loader.

        Returns:
            A tensor (k, k) for each slice of length k.

        Raises:
            ValueError: There are no examples.
            UnsupportedOperationError: The likelihood subtracts the mean gradient.
        """
        self._check_uncentred()
        sizes = [place.stop - place.start for place in places]
        like = [torch.empty((), dtype=self._dtype(), device=self.device).expand(size, size) for size in sizes]
        with undisturbed(self.model, self.device), torch.no_grad():
            return self._averaged("blocks", examples, lambda batches: self._blocks(places, batches), like)

    @abstractmethod
    def _blocks(self, places: Sequence[slice], batches: Iterable[Batch]) -> list[Tensor]:
        """The blocks, each of shape (k, k)."""

    def _check_uncentred(self) -> None:
        if self.likelihood.centred:
            raise UnsupportedOperationError(
                "products without a matrix do not subtract the mean gradient; use mv of a dense, block-diagonal or diagonal "
                "matrix, or centred=False"
            )

    def outputs(self, batch: Batch, n: int) -> Tensor:
        """The outputs of the n examples of a batch, checked.

        Raises:
            ShapeError: The first dimension is not n, or the outputs are not what the likelihood expects.
            ValueError: `n_output` is wrong.
        """
        with callers_autocast(self.device), _uncalled(self._wrapper):
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
        if outputs.ndim <= 2 or found < outputs[0].numel():  # else they may be as many as an example has positions
            self.seen_outputs.add(found)
        return outputs

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


@contextmanager
def _uncalled(wrapper: nn.Module | None) -> Iterator[None]:
    """Within it, a wrapper around the model raises when it is called: it would wait for the same call by other processes."""

    def refuse(module: nn.Module, _: Any) -> None:
        raise UnsupportedOperationError(
            f"the `function` calls the {type(module).__name__} around the model, which would exchange buffers and gradients "
            "with other processes; let it call `model.module`"
        )

    if wrapper is None:
        yield
        return
    hook = wrapper.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def _check_differentiable(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Raise unless every parameter is real and was made where autograd sees it."""
    for name, parameter in named:
        if not parameter.is_floating_point():
            raise ValueError(f"parameter '{name}' is {parameter.dtype}; expected real floating-point numbers")
        if parameter.is_inference():
            raise ValueError(
                f"parameter '{name}' was made under torch.inference_mode() and cannot be differentiated; build the model "
                "outside of it, and load the values into that one"
            )


def _common_device(parameters: Iterable[Tensor], device: torch.device | str | None) -> torch.device:
    """The one device of the collection's parameters, which is the one asked for."""
    devices = {parameter.device for parameter in parameters}
    if not devices:
        raise ValueError("the layer collection has no parameters: there is nothing to differentiate")
    if len(devices) > 1:
        raise ValueError(f"the model's parameters are on several devices, {sorted(map(str, devices))}; expected one")
    found = devices.pop()
    wanted = found if device is None else torch.device(device)
    if wanted.type != found.type or wanted.index not in (None, found.index):
        raise ValueError(f"device={str(wanted)!r} was given and the model is on {str(found)!r}; call model.to(device)")
    return found
