"""PVector: vectors of the parameter space, one coordinate per scalar parameter of a layer collection."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import islice

import torch
from torch import Tensor, nn

from nngeo_core.errors import LayerCollectionMismatchError, ShapeError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.vectors.arithmetic import Vector

__all__ = ["PVector", "random_pvector", "random_pvector_dict"]


class PVector(Vector):
    """A vector in parameter space, such as the parameters of a model, their gradient, or a step to take.

    Args:
        layer_collection: The layers, which fix the order of the coordinates.
        vector_repr: All d coordinates in flat order, shape (d,).
        dict_repr: Instead of `vector_repr`, the coordinates by layer id: a tuple of tensors with the shapes of the
            layer's parameters, (weight, bias) for most layers.

    Raises:
        ValueError: If both or neither of `vector_repr` and `dict_repr` are given, or the collection is empty.
        LayerCollectionMismatchError: If `dict_repr` has other layers than the collection.
        ShapeError: If a tensor has another shape than the collection says.

    Example:
        >>> from nngeo_core.layers.layer import LinearLayer
        >>> layers = LayerCollection({"fc": LinearLayer(2, 1)})
        >>> v = PVector(layers, vector_repr=torch.tensor([1.0, 2.0, 3.0]))
        >>> (2 * v).get_dict_representation()
        {'fc': (tensor([[2., 4.]]), tensor([6.]))}
        >>> v @ v, v.norm(1)
        (tensor(14.), tensor(6.))
    """

    def __init__(
        self,
        layer_collection: LayerCollection,
        vector_repr: Tensor | None = None,
        dict_repr: Mapping[str, Iterable[Tensor]] | None = None,
    ) -> None:
        if not layer_collection:
            raise ValueError("the layer collection is empty: add layers, or use LayerCollection.from_model(model)")
        self.layer_collection = layer_collection
        self._is_flat = vector_repr is not None
        if vector_repr is not None and dict_repr is None:
            self._tensors = (vector_repr,)
            if vector_repr.shape != self.size():
                raise ShapeError(f"vector_repr must have shape {tuple(self.size())}, got {tuple(vector_repr.shape)}")
        elif dict_repr is not None and vector_repr is None:
            self._tensors = _checked(layer_collection, dict_repr)
            self._borrowed = any(isinstance(tensor, nn.Parameter) for tensor in self._tensors)
        else:
            raise ValueError("PVector needs either vector_repr or dict_repr, and not both")

    @classmethod
    def from_model(cls, model: nn.Module, layer_collection: LayerCollection | None = None) -> PVector:
        """The parameters of a model, as a vector that follows it.

        The vector holds the model's own parameters: it keeps the autograd graph, so that a function of it propagates
        back into the model, and it changes with the model. `.detach().clone()` is a fixed copy. In-place arithmetic
        raises.

        Args:
            model: The model.
            layer_collection: The layers to take, by default all of the model's.

        Raises:
            LayerCollectionMismatchError: If the model does not have the collection's parameters.
            UnsupportedLayerError: If `layer_collection` is None and a module's rule refuses it; without the package
                nngeo-generators, which differentiates any module, also if it has no rule.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> model = nn.Sequential(nn.Linear(2, 1))
            >>> w = PVector.from_model(model, LayerCollection({"0": LinearLayer(2, 1)}))
            >>> (w @ w).backward()
            >>> bool((model[0].weight.grad == 2 * model[0].weight).all())
            True
        """
        layers = LayerCollection.from_model(model) if layer_collection is None else layer_collection
        return cls(layers, dict_repr=_grouped(layers, (parameter for _, parameter in layers.named_parameters(model))))

    @classmethod
    def from_model_grad(cls, model: nn.Module, layer_collection: LayerCollection | None = None) -> PVector:
        """A copy of the `.grad` fields of a model's parameters, with zeros where a field is None.

        Args:
            model: The model.
            layer_collection: The layers to take, by default all of the model's.

        Raises:
            LayerCollectionMismatchError: If the model does not have the collection's parameters.
            UnsupportedLayerError: If `layer_collection` is None and a module's rule refuses it; without the package
                nngeo-generators, which differentiates any module, also if it has no rule.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> model = nn.Sequential(nn.Linear(2, 1))
            >>> model(torch.ones(3, 2)).sum().backward()
            >>> PVector.from_model_grad(model, LayerCollection({"0": LinearLayer(2, 1)})).get_flat_representation()
            tensor([3., 3., 3.])
        """
        layers = LayerCollection.from_model(model) if layer_collection is None else layer_collection
        return cls(layers, dict_repr=_grouped(layers, (_gradient(p) for _, p in layers.named_parameters(model))))

    def restrict(self, layer_collection: LayerCollection) -> PVector:
        """The coordinates of some of the layers, in the order of their collection.

        Args:
            layer_collection: A collection whose layers are all in this vector's.

        Raises:
            LayerCollectionMismatchError: If a layer is not in this vector's collection, or another one there.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> layers = LayerCollection({"a": LinearLayer(2, 1), "b": LinearLayer(1, 1, bias=False)})
            >>> v = PVector(layers, vector_repr=torch.arange(4.0))
            >>> v.restrict(LayerCollection({"b": LinearLayer(1, 1, bias=False)})).get_flat_representation()
            tensor([3.])
        """
        self.layer_collection.check_contains(layer_collection)
        if self._is_flat:
            slices, flat = self.layer_collection.slices(), self._tensors[0]
            parts = [flat[slices[layer_id]] for layer_id in layer_collection]
            return PVector(layer_collection, vector_repr=torch.cat(parts))
        coordinates = self.get_dict_representation()
        part = PVector(layer_collection, dict_repr={layer_id: coordinates[layer_id] for layer_id in layer_collection})
        part._borrowed = self._borrowed
        return part

    def add_to_model(self, model: nn.Module) -> None:
        """Add the vector to the model's parameters, in place and outside the autograd graph.

        Raises:
            LayerCollectionMismatchError: If the model does not have the collection's parameters; it is unchanged then.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
            >>> _ = nn.init.ones_(model[0].weight)
            >>> layers = LayerCollection({"0": LinearLayer(2, 1, bias=False)})
            >>> PVector(layers, vector_repr=torch.tensor([0.5, 1.5])).add_to_model(model)
            >>> model[0].weight.data
            tensor([[1.5000, 2.5000]])
        """
        parameters = self.layer_collection.named_parameters(model)
        with torch.no_grad():
            for (_, parameter), tensor in zip(parameters, self._by_parameter(), strict=True):
                parameter.add_(tensor.to(parameter))

    def copy_to_model(self, model: nn.Module) -> None:
        """Overwrite the model's parameters with the vector, in place and outside the autograd graph.

        Raises:
            LayerCollectionMismatchError: If the model does not have the collection's parameters; it is unchanged then.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
            >>> layers = LayerCollection({"0": LinearLayer(2, 1, bias=False)})
            >>> PVector(layers, vector_repr=torch.tensor([0.5, 1.5])).copy_to_model(model)
            >>> model[0].weight.data
            tensor([[0.5000, 1.5000]])
        """
        parameters = self.layer_collection.named_parameters(model)
        with torch.no_grad():
            for (_, parameter), tensor in zip(parameters, self._by_parameter(), strict=True):
                parameter.copy_(tensor)

    def copy_to_model_grad(self, model: nn.Module) -> None:
        """Put a copy of the vector into the `.grad` fields of the model's parameters, for an optimizer to step along.

        What the fields held is replaced; the counterpart of `from_model_grad`.

        Raises:
            LayerCollectionMismatchError: If the model does not have the collection's parameters; it is unchanged then.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
            >>> layers = LayerCollection({"0": LinearLayer(2, 1, bias=False)})
            >>> PVector(layers, vector_repr=torch.tensor([0.5, 1.5])).copy_to_model_grad(model)
            >>> model[0].weight.grad
            tensor([[0.5000, 1.5000]])
        """
        parameters = self.layer_collection.named_parameters(model)
        for (_, parameter), tensor in zip(parameters, self._by_parameter(), strict=True):
            parameter.grad = tensor.detach().to(parameter, copy=True)

    def get_flat_representation(self) -> Tensor:
        """The coordinates in the order of the layer collection, shape (d,).

        A vector of `from_model` gives the values that the model has at the time of the call.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> layers = LayerCollection({"fc": LinearLayer(2, 1)})
            >>> v = PVector(layers, dict_repr={"fc": (torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]))})
            >>> v.get_flat_representation()
            tensor([1., 2., 3.])
        """
        return self._tensors[0] if self._is_flat else torch.cat([tensor.reshape(-1) for tensor in self._tensors])

    def get_dict_representation(self) -> dict[str, tuple[Tensor, ...]]:
        """The coordinates by layer id, shaped as the layer's parameters: (weight, bias) for most layers.

        The tensors share the vector's memory.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> layers = LayerCollection({"fc": LinearLayer(2, 1)})
            >>> PVector(layers, vector_repr=torch.tensor([1.0, 2.0, 3.0])).get_dict_representation()
            {'fc': (tensor([[1., 2.]]), tensor([3.]))}
        """
        return _grouped(self.layer_collection, self._by_parameter())

    def size(self) -> torch.Size:
        """Number of coordinates, (d,), which is the number of parameters of the layer collection."""
        return torch.Size([self.layer_collection.numel()])

    def _by_parameter(self) -> tuple[Tensor, ...]:
        if not self._is_flat:
            return self._tensors
        shapes = [shape for layer in self.layer_collection.values() for shape in layer.parameter_shapes().values()]
        pieces = torch.split(self._tensors[0], [math.prod(shape) for shape in shapes])
        return tuple(piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True))

    def _aligned(self, other: PVector) -> tuple[Tensor, ...]:
        self.layer_collection.check_same(other.layer_collection)
        return (other.get_flat_representation(),) if self._is_flat else other._by_parameter()

    def __repr__(self) -> str:
        form, layers, first = "flat" if self._is_flat else "dict", self.layer_collection, self._tensors[0]
        return f"PVector({form}, d={layers.numel()}, layers={len(layers)}, {first.dtype}, {first.device})"


def random_pvector(
    layer_collection: LayerCollection,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> PVector:
    """A vector of independent standard normal coordinates, flat inside.

    Args:
        layer_collection: The layers.
        device: Device of the result.
        dtype: Its dtype, torch's default one if None.
        generator: Source of randomness, torch's default one if None.

    Example:
        >>> from nngeo_core.layers.layer import LinearLayer
        >>> random_pvector(LayerCollection({"fc": LinearLayer(2, 1)}), dtype=torch.float64)
        PVector(flat, d=3, layers=1, torch.float64, cpu)
    """
    coordinates = torch.randn(layer_collection.numel(), device=device, dtype=dtype, generator=generator)
    return PVector(layer_collection, vector_repr=coordinates)


def random_pvector_dict(
    layer_collection: LayerCollection,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> PVector:
    """A vector of independent standard normal coordinates, one tensor per parameter inside.

    Args:
        layer_collection: The layers.
        device: Device of the result.
        dtype: Its dtype, torch's default one if None.
        generator: Source of randomness, torch's default one if None.

    Example:
        >>> from nngeo_core.layers.layer import LinearLayer
        >>> random_pvector_dict(LayerCollection({"fc": LinearLayer(2, 1)}), dtype=torch.float64)
        PVector(dict, d=3, layers=1, torch.float64, cpu)
    """
    shapes = (shape for layer in layer_collection.values() for shape in layer.parameter_shapes().values())
    coordinates = (torch.randn(shape, device=device, dtype=dtype, generator=generator) for shape in shapes)
    return PVector(layer_collection, dict_repr=_grouped(layer_collection, coordinates))


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter, requires_grad=False)
    return parameter.grad.clone().to_dense()


def _grouped(layer_collection: LayerCollection, tensors: Iterable[Tensor]) -> dict[str, tuple[Tensor, ...]]:
    stream = iter(tensors)
    return {name: tuple(islice(stream, len(layer.parameter_shapes()))) for name, layer in layer_collection.items()}


def _checked(layer_collection: LayerCollection, dict_repr: Mapping[str, Iterable[Tensor]]) -> tuple[Tensor, ...]:
    if dict_repr.keys() != layer_collection.keys():
        raise LayerCollectionMismatchError(
            f"dict_repr must have layers {list(layer_collection)}, got {list(dict_repr)}"
        )
    held: list[Tensor] = []
    for layer_id, layer in layer_collection.items():
        tensors, shapes = tuple(dict_repr[layer_id]), layer.parameter_shapes()
        given = tuple(tuple(tensor.shape) for tensor in tensors)
        if given != tuple(shapes.values()):
            raise ShapeError(f"layer '{layer_id}' has parameters of shapes {shapes}, got {given}")
        held.extend(tensors)
    return tuple(held)
