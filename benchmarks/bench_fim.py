"""What a Fisher matrix of a small network costs, in seconds and in gradient passes over the same data."""

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor, nn

from nngeo_core import FIM


def median_seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the median wall time of `call`, after one call to warm up."""
    call()
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        call()
        seconds.append(perf_counter() - start)
    return sorted(seconds)[repeats // 2]


class BuildFIM:
    """Build the exact Fisher matrix of an MLP 64-48-48-10 over 256 random examples."""

    param_names = ["representation"]
    params = [["dense", "diag", "kfac"]]

    def setup(self, representation: str) -> None:
        """Make the model and the data, and build once: plugins load at the first look-up."""
        generator = torch.Generator().manual_seed(0)
        layers = [nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10)]
        self.model = nn.Sequential(*layers)
        self.inputs = torch.randn(256, 64, generator=generator)
        self.targets = torch.randint(10, (256,), generator=generator)
        self.build(representation)

    def build(self, representation: str) -> object:
        """Build the matrix from the whole data as one batch."""
        loader = (self.inputs, self.targets)
        return FIM(
            model=self.model, loader=loader, representation=representation, n_output=10, variant="classif_logits"
        )

    def gradient_pass(self) -> tuple[Tensor, ...]:
        """Compute the gradient of the mean loss over the same data: the unit of cost."""
        loss = nn.functional.cross_entropy(self.model(self.inputs), self.targets)
        return torch.autograd.grad(loss, tuple(self.model.parameters()))

    def time_build(self, representation: str) -> None:
        """Time one build."""
        self.build(representation)

    def track_ratio_to_gradient_pass(self, representation: str) -> float:
        """Return the time of one build divided by the time of one gradient pass."""
        return median_seconds(lambda: self.build(representation)) / median_seconds(self.gradient_pass)

    track_ratio_to_gradient_pass.unit = "gradient passes"
