"""The dense Jacobian (c, n, d) of examples, and its two maps."""

from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import NonFiniteError, ShapeError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.finite import all_finite
from nngeo_core.matrices.maps import JacobianMap, PullBack, PushForward
from nngeo_core.parallel.outputs import check_equally_many
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.populate import with_progress
from nngeo_core.sweep.untouched import undisturbed
from nngeo_ntk.recorded import NO_OUTPUTS, Recorded

__all__ = ["DenseMap", "PullBackDense", "PushForwardDense", "dense_jacobian"]


def dense_jacobian(generator: Generator, examples: Recorded, progress: bool = False) -> Tensor:
    """J, shape (c, n, d), from one sweep; for the examples of all processes that share the computation.

    Raises:
        ShapeError: Examples have different numbers of outputs, on one process or on two.
    """
    group = generator.group
    if group is None:
        return _computed(generator, examples, progress)
    with group.together("a Jacobian") as outputs:
        mine = _computed(generator, examples, progress and group.rank == 0) if len(examples) else None
        outputs[0] = 0 if mine is None else len(mine)
    check_equally_many(outputs, "a Jacobian")
    return torch.cat([part for part in group.gather(mine, "a Jacobian") if part is not None], 1)


def _computed(generator: Generator, examples: Recorded, progress: bool) -> Tensor:
    sizes = {layer_id: layer.numel() for layer_id, layer in generator.layer_collection.items()}
    found, first = None, 0
    with undisturbed(generator.model, generator.device), torch.no_grad():
        for batch in generator.stream(with_progress(examples, "Jacobian" if progress else None)):
            if found is None:
                shape = (batch.total_directions, len(examples), sum(sizes.values()))
                found = torch.empty(shape, dtype=batch.dtype, device=batch.device)
            if batch.total_directions != len(found):
                raise ShapeError(
                    f"example {first} has {batch.total_directions} outputs, and the first one has {len(found)}; give a "
                    "`function` that returns those to compare"
                )
            found[batch.directions, first : first + batch.n_examples] = batch.to_dense(sizes)
            first += batch.n_examples if batch.directions.stop == batch.total_directions else 0
    if found is None:
        raise ShapeError(NO_OUTPUTS)
    return found


class DenseMap(JacobianMap):
    """A map that holds J as a tensor.

    Args:
        generator: Differentiates the model; needed with `examples`.
        data: J, shape (c, n, d), instead of `examples`.
        examples: One batch or a loader, read once.
        layer_collection: The parameters that `data` is about; None takes the generator's.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: Both or neither of `data` and `examples` are given, or something is missing that they need.
        ShapeError: `data` is not (c, n, d).
    """

    def __init__(
        self,
        generator: Generator | None = None,
        data: Tensor | None = None,
        examples: Any = None,
        layer_collection: LayerCollection | None = None,
        *,
        progress: bool = False,
    ) -> None:
        if data is None and (examples is None or generator is None):
            raise ValueError(f"{type(self).__name__} needs `data`, or a `generator` and `examples`")
        layers = layer_collection if generator is None else generator.layer_collection
        if layers is None:
            raise ValueError(f"{type(self).__name__} from `data` needs a `layer_collection` or a `generator`; got none")
        self.generator, self.layer_collection = generator, layers
        self.examples = Recorded.of(generator, examples) if generator is not None and examples is not None else None
        if data is None and generator is not None and self.examples is not None:
            data = dense_jacobian(generator, self.examples, progress)
        self.data = self._checked(data)

    def _checked(self, data: Any) -> Tensor:
        d = self.layer_collection.numel()
        if not isinstance(data, Tensor) or data.ndim != 3 or data.shape[2] != d:
            given = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
            raise ShapeError(f"the data of a {type(self).__name__} are a tensor of shape (c, n, {d}), got {given}")
        if not all_finite(data):
            raise NonFiniteError(f"the data of a {type(self).__name__} have NaN or infinite entries")
        return data

    def size(self) -> tuple[int, int, int]:
        """(c, n, d)."""
        c, n, d = self.data.shape
        return c, n, d

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of J."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        """The device of J."""
        return self.data.device

    def get_dense_tensor(self) -> Tensor:
        """The stored tensor itself, shape (c, n, d)."""
        return self.data


class PushForwardDense(DenseMap, PushForward):
    """J v from the stored J, shape (c, n, d).

    Example:
        >>> from nngeo_core import LayerCollection, LinearLayer, PVector
        >>> layers = LayerCollection({"fc": LinearLayer(2, 1, bias=False)})
        >>> J = PushForwardDense(data=torch.tensor([[[3.0, 4.0]]]), layer_collection=layers)
        >>> (J @ PVector(layers, vector_repr=torch.tensor([1.0, 10.0]))).vector_repr
        tensor([[43.]])
    """

    name = "dense"

    @property
    def T(self) -> PullBack:
        """The pull-back, on the same tensor."""
        return PullBackDense(self.generator, self.data, self.examples, self.layer_collection)

    def _mv(self, v: Tensor) -> Tensor:
        return self.data @ v


class PullBackDense(DenseMap, PullBack):
    """J^T u from the stored J, shape (c, n, d).

    Example:
        >>> from nngeo_core import FVector, LayerCollection, LinearLayer
        >>> layers = LayerCollection({"fc": LinearLayer(2, 1, bias=False)})
        >>> transposed = PullBackDense(data=torch.tensor([[[3.0, 4.0]]]), layer_collection=layers)
        >>> (transposed @ FVector(torch.tensor([[2.0]]))).get_flat_representation()
        tensor([6., 8.])
    """

    name = "dense"

    @property
    def T(self) -> PushForward:
        """The push-forward, on the same tensor."""
        return PushForwardDense(self.generator, self.data, self.examples, self.layer_collection)

    def _mv(self, u: Tensor) -> Tensor:
        return u.flatten() @ self.data.flatten(0, 1)
