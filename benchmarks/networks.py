"""The plain networks and inputs that several benchmarks share."""

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["convnet", "mlp", "random_inputs"]


def mlp(*widths: int) -> nn.Sequential:
    """A multilayer perceptron with rectifiers."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convnet(a: int, b: int, c: int, d: int, classes: int = 10) -> nn.Sequential:
    """Four convolutions of 3 x 3 pixels, a halving of the image after every second one, and a linear layer on the means."""
    return nn.Sequential(
        *(nn.Conv2d(3, a, 3, padding=1), nn.ReLU(), nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(d, classes)),
    )


def random_inputs(n: int, *shape: int) -> Tensor:
    """Standard normal inputs, always the same."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
