"""Layer records: the names and shapes of one layer's parameters, in the order in which they are flattened."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from nngeo_core.jacobians.layout import matrix_layout
from nngeo_core.jacobians.structure import Structure

__all__ = ["Conv2dLayer", "ConvTranspose2dLayer", "Layer", "LinearLayer", "ParameterLayer"]


class Layer(ABC):
    """A named set of parameters whose derivatives are computed together.

    Records are frozen and compare by value, so that matrices and vectors built apart can tell whether they describe the
    same layers. Subclass it with a frozen dataclass for a layer type of your own.
    """

    @abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by its name local to the module, in flat order (weight, then bias)."""

    def numel(self) -> int:
        """Number of scalar parameters d_l of the layer.

        Example:
            >>> LinearLayer(3, 2).numel()
            8
        """
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def structure(self) -> Structure | None:
        """What the layer's Jacobian is where it is used as its record says; None if the record alone does not say.

        Example:
            >>> LinearLayer(3, 2).structure().factor_numel
            20
        """
        return None

    def summary(self) -> str:
        """Sizes in a few words, for print: of the first parameters, a weight without its name.

        Example:
            >>> ParameterLayer((("in_proj_weight", (24, 8)), ("in_proj_bias", (24,)))).summary()
            '24 x 8, bias 24'
            >>> ParameterLayer((("scale", (8,)), ("shift", ()), ("offset", ()))).summary()
            'scale 8, 2 more'
        """
        texts = []
        for name, shape in self.parameter_shapes().items():
            label = "" if "weight" in name else "bias" if "bias" in name else name
            texts.append(f"{label} {' x '.join(map(str, shape)) or 'scalar'}".strip())
        return ", ".join(texts if len(texts) < 3 else [texts[0], f"{len(texts) - 1} more"])


@dataclass(frozen=True)
class LinearLayer(Layer):
    """The parameters of `torch.nn.Linear`: weight (out_features, in_features) and bias (out_features,).

    Example:
        >>> LinearLayer(3, 2).parameter_shapes()
        {'weight': (2, 3), 'bias': (2,)}
    """

    in_features: int
    out_features: int
    bias: bool = True

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by its local name, in flat order."""
        return _weight_and_bias((self.out_features, self.in_features), self.out_features, self.bias)

    def structure(self) -> Structure:
        """Inputs times output gradients."""
        return Structure(matrix_layout(self.parameter_shapes()))

    def summary(self) -> str:
        """Inputs, outputs, and whether the bias is missing."""
        return f"{self.in_features} -> {self.out_features}{'' if self.bias else ', no bias'}"


@dataclass(frozen=True)
class _Convolution2d(Layer):
    in_channels: int
    out_channels: int
    kernel_size: int | tuple[int, int]
    bias: bool = True
    groups: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel_size", _pair(self.kernel_size))
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups={self.groups} must divide in_channels={self.in_channels} and out_channels={self.out_channels}"
            )

    def summary(self) -> str:
        """Channels, kernel, groups, and whether the bias is missing."""
        height, width = _pair(self.kernel_size)
        channels = f"{self.in_channels} -> {self.out_channels}"
        return f"{channels}, {height}x{width}, groups {self.groups}{'' if self.bias else ', no bias'}"


@dataclass(frozen=True)
class Conv2dLayer(_Convolution2d):
    """The parameters of `torch.nn.Conv2d`: weight (out_channels, in_channels / groups, height, width), bias.

    An integer `kernel_size` stands for a square kernel; it is stored as a pair.

    Raises:
        ValueError: If `groups` does not divide both numbers of channels, or `kernel_size` is no integer and no pair.

    Example:
        >>> Conv2dLayer(4, 6, 3, groups=2).parameter_shapes()
        {'weight': (6, 2, 3, 3), 'bias': (6,)}
    """

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by its local name, in flat order."""
        weight = (self.out_channels, self.in_channels // self.groups, *_pair(self.kernel_size))
        return _weight_and_bias(weight, self.out_channels, self.bias)

    def structure(self) -> Structure:
        """Patches times output gradients, in each group."""
        return Structure(matrix_layout(self.parameter_shapes(), self.groups))


@dataclass(frozen=True)
class ConvTranspose2dLayer(_Convolution2d):
    """The parameters of `torch.nn.ConvTranspose2d`: weight (in_channels, out_channels / groups, height, width), bias.

    An integer `kernel_size` stands for a square kernel; it is stored as a pair.

    Raises:
        ValueError: If `groups` does not divide both numbers of channels, or `kernel_size` is no integer and no pair.

    Example:
        >>> ConvTranspose2dLayer(4, 6, (3, 5), bias=False).parameter_shapes()
        {'weight': (4, 6, 3, 5)}
    """

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by its local name, in flat order."""
        weight = (self.in_channels, self.out_channels // self.groups, *_pair(self.kernel_size))
        return _weight_and_bias(weight, self.out_channels, self.bias)

    def structure(self) -> Structure:
        """Patches times output gradients, in each group."""
        return Structure(matrix_layout(self.parameter_shapes(), self.groups, transposed=True))


@dataclass(frozen=True)
class ParameterLayer(Layer):
    """Any other set of named parameters, such as a module's parameters without the tied ones.

    Args:
        shapes: Pairs (local name, shape), in flat order.

    Raises:
        ValueError: If a name appears twice.

    Example:
        >>> ParameterLayer((("scale", (3,)), ("shift", ()))).numel()
        4
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        """Normalise the shapes to tuples, so that equal sets compare equal."""
        shapes = tuple((name, tuple(shape)) for name, shape in self.shapes)
        if len(dict(shapes)) < len(shapes):
            raise ValueError(f"each parameter may be named once, got {[name for name, _ in shapes]}")
        object.__setattr__(self, "shapes", shapes)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by its local name, in flat order."""
        return dict(self.shapes)


def _weight_and_bias(weight: tuple[int, ...], outputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return {"weight": weight, "bias": (outputs,)} if bias else {"weight": weight}


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise ValueError(f"kernel_size must be an integer or a pair, got {size}")
    return size[0], size[1]
