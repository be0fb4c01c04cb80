"""What the asv suite measures: small networks by the type of their layers, and what a commit may lack."""

from collections.abc import Callable
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn

DEVICES = ["cpu", "cuda"]
LAYERS = ["linear", "convolution", "attention"]
SIZES = [16, 64]
EXAMPLES = 64


class Attention(nn.Module):
    """One block of a transformer over eight positions, and a linear layer on the mean of its outputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, 8, width) to (n, 10)."""
        logits: Tensor = self.head(self.block(x).mean(1))
        return logits


def network(layer: str, size: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A model whose layers are of one type and of that width, and the shape of one input."""
    torch.manual_seed(0)
    if layer == "linear":
        return nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 10)), (
            size,
        )
    if layer == "convolution":
        layers = [nn.Conv2d(3, size // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(size // 2, size // 2, 3), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(size // 2, 10)), (3, 12, 12)
    return Attention(size).eval(), (8, size)


class Subject:
    """A network, data and a vector on a device; on a CPU one thread works, whose own time does not see what else is busy.

    Raises:
        NotImplementedError: The device is not there; asv shows n/a.
    """

    def __init__(self, device: str, layer: str, size: int) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise NotImplementedError("no such device here")
        torch.set_num_threads(1)
        model, shape = network(layer, size)
        self.device, self.model = device, model.to(device)
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(EXAMPLES, *shape, generator=generator).to(device)
        self.targets = torch.randint(10, (EXAMPLES,), generator=generator).to(device)

    def gradient_pass(self) -> None:
        """Compute the gradient of the mean loss over the same data: the unit of cost."""
        loss = nn.functional.cross_entropy(self.model(self.inputs), self.targets)
        torch.autograd.grad(loss, tuple(self.model.parameters()))
        self.wait()

    def wait(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def ratio(self, call: Callable[[], object], repeats: int = 9) -> float:
        """The time of a call in gradient passes: the median of neighbouring measurements, after one call to warm up."""
        call()
        return median(self.seconds(call) / self.unit() for _ in range(repeats))

    def unit(self) -> float:
        """The time of a gradient pass; the first one after a large call would pay for what that drove out of the caches."""
        self.gradient_pass()
        return min(self.seconds(self.gradient_pass) for _ in range(3))

    def seconds(self, call: Callable[[], object]) -> float:
        """The time of one call."""
        now = perf_counter if self.device == "cuda" else process_time
        start = now()
        call()
        self.wait()
        return now() - start


def of_this_commit(name: str) -> Any:
    """A public name of nngeo.

    Raises:
        NotImplementedError: This commit has not that name, or a package is not there yet; asv shows n/a.
    """
    try:
        import nngeo

        return getattr(nngeo, name)
    except (ImportError, AttributeError) as error:
        raise NotImplementedError(f"no {name} in this commit") from error


def representation_of_this_commit(name: str) -> str:
    """A registered name of a representation.

    Raises:
        NotImplementedError: It is not registered in this commit; asv shows n/a.
    """
    of_this_commit("FIM")
    from nngeo_core.plugins import registry

    if name not in registry.names("representations"):
        raise NotImplementedError(f"no representation {name} in this commit")
    return name
