"""The models and data that libraries are compared on, and which operations on which."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.networks import convnet, mlp, random_inputs
from benchmarks.peers.problem import Problem

MATRIX_FREE = ("product", "quadratic form", "trace")
BUILDS = ("diag", "quasidiag", "kfac", "ekfac")
SOLVES = ("kfac solve, first", "kfac solve, again")
DENSE = ("dense", "blockdiag", "dense solve, first", "dense solve, again")


@dataclass(frozen=True)
class Workload:
    """A problem to build and the operations to compare on it."""

    title: str
    build: Callable[[], Problem]
    operations: tuple[str, ...]


class ResidualBlock(nn.Module):
    """Two convolutions with batch normalisation, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        hidden = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class Logits(nn.Module):
    """The logits of a model of transformers, at the last position where there are several."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, ...) to (n, classes)."""
        logits: Tensor = self.model(x).logits
        return logits if logits.ndim == 2 else logits[:, -1]


def classes(c: int) -> Problem:
    """MLP 784-512-512-c."""
    torch.manual_seed(0)
    return Problem(mlp(784, 512, 512, c), random_inputs(256, 784))


def small_mlp() -> Problem:
    """MLP 64-48-48-10, whose Fisher matrix fits memory."""
    torch.manual_seed(0)
    return Problem(mlp(64, 48, 48, 10), random_inputs(256, 64))


def images() -> Problem:
    """A four-layer convnet."""
    torch.manual_seed(0)
    return Problem(convnet(32, 32, 64, 64), random_inputs(128, 3, 32, 32))


def small_images() -> Problem:
    """A convnet whose Fisher matrix fits memory."""
    torch.manual_seed(0)
    return Problem(convnet(8, 8, 16, 16), random_inputs(128, 3, 16, 16))


def resnet() -> Problem:
    """A residual network of eight layers, with the statistics of batch normalisation frozen."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2)]
    return Problem(
        nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
        random_inputs(64, 3, 32, 32),
    )


def gpt2() -> Problem:
    """GPT-2 with two blocks, predicting the token after 16; embedding and head are tied."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=64, vocab_size=64, n_positions=16, use_cache=False, attn_implementation="eager"
    )
    tokens = torch.randint(64, (64, 16), generator=torch.Generator().manual_seed(0))
    return Problem(Logits(GPT2LMHeadModel(config)), tokens, kronecker=(Conv1D,))


def vit() -> Problem:
    """A vision transformer with two blocks on 17 positions."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
        **{"image_size": 32, "patch_size": 8, "num_labels": 10, "attn_implementation": "eager"},
    )
    return Problem(Logits(ViTForImageClassification(config)), random_inputs(64, 3, 32, 32), kronecker=(nn.Linear,))


WORKLOADS = [
    Workload("MLP-10", lambda: classes(10), (*MATRIX_FREE, *BUILDS, "gram", *SOLVES)),
    Workload("MLP-100", lambda: classes(100), (*MATRIX_FREE, *BUILDS)),
    Workload("convnet", images, (*MATRIX_FREE, *BUILDS, "gram", *SOLVES)),
    Workload("ResNet", resnet, (*MATRIX_FREE, "diag", "quasidiag", "kfac", "ekfac", "gram")),
    Workload("GPT-2", gpt2, (*MATRIX_FREE, "diag", "quasidiag", "kfac", "ekfac", "gram")),
    Workload("ViT", vit, (*MATRIX_FREE, "diag", "quasidiag", "kfac", "ekfac", "gram")),
    Workload("small MLP", small_mlp, DENSE),
    Workload("small convnet", small_images, DENSE),
]
