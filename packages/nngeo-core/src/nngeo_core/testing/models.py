"""Small models that together hold what goes wrong: shared positions, repeated calls, ties, frozen parts, odd geometry.

Every case is the same at each call, and the global random state is as it was before.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Case", "MODELS", "conv_net", "conv_relu_pool_net", "mlp", "position_net", "repeated_net", "tied_net"]


@dataclass(frozen=True)
class Case:
    """A model with inputs to run it on; `model(inputs)` has shape (n, n_output).

    Example:
        >>> case = MODELS["mlp"]()
        >>> case.model(case.inputs).shape == (len(case.inputs), case.n_output)
        True
    """

    model: nn.Module
    inputs: Tensor
    n_output: int

    def to(self, dtype: torch.dtype) -> "Case":
        """Copy the case with model and inputs in another floating-point type; ties between parameters are kept.

        Args:
            dtype: such as `torch.float32`.

        Returns:
            A new case; this one is unchanged.

        Example:
            >>> MODELS["mlp"]().to(torch.float32).inputs.dtype
            torch.float32
        """
        return Case(deepcopy(self.model).to(dtype), self.inputs.to(dtype), self.n_output)


class _MeanOverPositions(nn.Module):
    """(n, positions ..., c) to (n, c)."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1, -2).mean(dim=1)


class _Repeated(nn.Module):
    """One linear module called twice, on different inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.repeated = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(torch.tanh(self.repeated(torch.tanh(self.repeated(inputs)))))
        return outputs


def _case(build: Callable[[], nn.Module], *shape: int) -> Case:
    """Seeded model and inputs in float64, without a trace in the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = build().double()
        inputs = torch.randn(shape, dtype=torch.float64)
        with torch.no_grad():
            return Case(model, inputs, model(inputs).shape[1])


def mlp(
    widths: tuple[int, ...] = (5, 4, 3),
    activation: Callable[[], nn.Module] = nn.Tanh,
    bias: bool = True,
    frozen: tuple[str, ...] = (),
    n_examples: int = 7,
) -> Case:
    """Build linear layers with an activation between them; layer i is the submodule `str(2 * i)`.

    Args:
        widths: of the input, of every layer's output.
        activation: class or function that makes the activation; `nn.Identity` makes a deep linear net.
        bias: whether the layers have one.
        frozen: names of parameters that get `requires_grad=False`.
        n_examples: n.

    Returns:
        A case with inputs (n, widths[0]) and n_output = widths[-1].

    Example:
        >>> mlp(widths=(2, 3), n_examples=1).inputs.shape
        torch.Size([1, 2])
    """

    def build() -> nn.Module:
        layers = [nn.Linear(i, o, bias) for i, o in pairwise(widths)]
        model = nn.Sequential(*[module for layer in layers for module in (layer, activation())][:-1])
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)
        return model

    return _case(build, n_examples, widths[0])


def conv_net(image: tuple[int, int] = (7, 6), **options: Any) -> Case:
    """Build a convolution from 4 channels to 6, a 1 x 1 convolution with the average of its pixels, and a linear head.

    Args:
        image: height and width of the inputs.
        **options: of the first `nn.Conv2d` (submodule `"0"`); its kernel is (3, 2) unless given.

    Returns:
        A case with inputs (5, 4, *image) and three outputs.

    Example:
        >>> conv_net(groups=2).model[0].weight.shape
        torch.Size([6, 2, 3, 2])
    """

    def build() -> nn.Module:
        first = nn.Conv2d(4, **{"out_channels": 6, "kernel_size": (3, 2), **options})
        second = nn.Conv2d(first.out_channels, 4, 1)
        pool = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), pool, nn.Flatten(), nn.Linear(4, 3))

    return _case(build, 5, 4, *image)


def conv_relu_pool_net() -> Case:
    """Build two convolutions with in-place ReLU and max pooling, and a linear head on the flattened pixels.

    Returns:
        A case with inputs (5, 2, 8, 8) and three outputs.

    Example:
        >>> conv_relu_pool_net().model[1]
        ReLU(inplace=True)
    """

    def build() -> nn.Module:
        first = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        second = [nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.Flatten()]
        return nn.Sequential(*first, *second, nn.Linear(16, 3))

    return _case(build, 5, 2, 8, 8)


def position_net(
    *positions: int, n_examples: int = 5, bias: bool = True, activation: Callable[[], nn.Module] = nn.Tanh
) -> Case:
    """Build two linear layers applied at every position, then the mean over positions.

    Args:
        *positions: the axes between the first and the last, such as T for a sequence or T, H, W for a film.
        n_examples: n.
        bias: whether the layers have one.
        activation: class or function that makes the activation between the layers.

    Returns:
        A case with inputs (n, *positions, 3) and three outputs.

    Example:
        >>> position_net(2, 4).inputs.shape
        torch.Size([5, 2, 4, 3])
    """

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4, bias), activation(), nn.Linear(4, 3, bias), _MeanOverPositions())

    return _case(build, n_examples, *positions, 3)


def repeated_net() -> Case:
    """Build a net that calls its module `repeated` twice.

    Returns:
        A case with inputs (6, 4) and three outputs.

    Example:
        >>> [name for name, _ in repeated_net().model.named_children()]
        ['repeated', 'head']
    """
    return _case(_Repeated, 6, 4)


def tied_net(bias: bool = False, tied_bias: bool = False) -> Case:
    """Build three linear layers of which the first two, `"0"` and `"2"`, share their weight.

    Args:
        bias: whether these two have a bias.
        tied_bias: whether they share it as well.

    Returns:
        A case with inputs (6, 4) and three outputs.

    Example:
        >>> [name for name, _ in tied_net().model.named_parameters()]
        ['0.weight', '4.weight', '4.bias']
    """

    def build() -> nn.Module:
        first, second = nn.Linear(4, 4, bias), nn.Linear(4, 4, bias)
        second.weight = first.weight
        if tied_bias:
            second.bias = first.bias
        return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, 3))

    return _case(build, 6, 4)


_relu = partial(nn.ReLU, inplace=True)

MODELS: dict[str, Callable[[], Case]] = {
    "mlp": mlp,
    "mlp-one-example": partial(mlp, n_examples=1),
    "mlp-five-outputs": partial(mlp, widths=(4, 3, 5)),
    "mlp-no-bias": partial(mlp, bias=False),
    "mlp-relu-inplace": partial(mlp, widths=(5, 8, 6, 3), activation=_relu),
    "mlp-one-parameter-layer": partial(mlp, widths=(4, 1, 1, 3), bias=False),
    "mlp-frozen-first": partial(mlp, frozen=("0.weight", "0.bias")),
    "mlp-frozen-bias": partial(mlp, frozen=("2.bias",)),
    "linear-one-layer": partial(mlp, widths=(5, 3)),
    "linear-deep": partial(mlp, widths=(5, 4, 6, 3), activation=nn.Identity),
    "conv": conv_net,
    "conv-no-bias": partial(conv_net, bias=False),
    "conv-stride-padding": partial(conv_net, stride=(2, 1), padding=(2, 1)),
    "conv-dilation": partial(conv_net, dilation=(2, 3), padding=1),
    "conv-groups": partial(conv_net, groups=2, padding=1),
    "conv-depthwise": partial(conv_net, out_channels=8, groups=4, stride=2),
    "conv-same": partial(conv_net, kernel_size=(3, 5), padding="same", dilation=(2, 1)),
    "conv-valid": partial(conv_net, padding="valid"),
    "conv-reflect": partial(conv_net, padding="same", padding_mode="reflect"),
    "conv-replicate": partial(conv_net, padding=(2, 1), padding_mode="replicate", stride=2),
    "conv-circular": partial(conv_net, padding=(1, 2), padding_mode="circular", groups=2),
    "conv-one-position": partial(conv_net, image=(3, 2)),
    "conv-relu-inplace-pool": conv_relu_pool_net,
    "positions-sequence": partial(position_net, 4),
    "positions-as-many-as-examples": partial(position_net, 5),
    "positions-three-axes": partial(position_net, 2, 3, 2),
    "positions-relu-inplace": partial(position_net, 4, activation=_relu),
    "positions-no-bias": partial(position_net, 4, bias=False),
    "called-twice": repeated_net,
    "tied-weight": tied_net,
    "tied-weight-own-bias": partial(tied_net, bias=True),
    "tied-weight-and-bias": partial(tied_net, bias=True, tied_bias=True),
}
"""Small networks with their data, by name: each call builds a fresh one."""
