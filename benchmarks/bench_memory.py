"""What a sweep needs at its peak: its budget at most, on top of a plain training step. Reads Linux's process files."""

import os
import resource
import subprocess
import sys

import torch
from torch import Tensor, nn

from nngeo_core import FIM

MIB = 2**20


def resident() -> int:
    """Return the bytes of memory that this process holds now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def forget_high_water() -> None:
    """Have `high_water` start anew."""
    with open("/proc/self/clear_refs", "w") as forget:
        forget.write("5")


def high_water() -> int:
    """Return the most bytes that this process held; `getrusage` would count its parent's, before it was started, too."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024


def convnet() -> nn.Sequential:
    """Make a convnet whose activations outweigh its parameters a thousandfold."""
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 100))


def train(model: nn.Module, images: Tensor) -> None:
    """Take the gradient of a loss of all images at once."""
    nn.functional.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.long)).backward()


def peak(task: str, budget: int) -> int:
    """Return the bytes that a task adds at its peak to what the process held before: `"train"` or a representation."""

    def work(images: Tensor) -> None:
        if task == "train":
            train(convnet(), images)
        else:
            FIM(convnet(), images, task, memory_budget=budget)

    generator = torch.Generator().manual_seed(0)
    work(torch.randn(2, 3, 4, 4, generator=generator))  # what is loaded at the first use
    images = torch.randn(16, 3, 64, 64, generator=generator)
    forget_high_water()
    before = resident()
    work(images)
    return high_water() - before


def peak_alone(task: str, budget: int = 0) -> int:
    """Return `peak` of a task as new processes find it: the median of three, in which memory is cut up differently."""
    command = [sys.executable, __file__, task, str(budget)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = [subprocess.run(command, env=environment, check=True, capture_output=True, text=True) for _ in range(3)]
    return sorted(int(run.stdout) for run in runs)[1]


class PeakMemory:
    """Sweep 16 images of 64 x 64 pixels and 100 classes: all gradients at once would take 0.8 GiB."""

    param_names = ["representation", "memory_budget_in_mib"]
    params = [["diag", "kfac"], [32, 128]]

    def setup_cache(self) -> int:
        """Measure a training step."""
        return peak_alone("train")

    def track_share_of_budget(self, training: int, representation: str, memory_budget_in_mib: int) -> float:
        """Return what the sweep needs beyond a training step, divided by its budget; at most 1."""
        budget = memory_budget_in_mib * MIB
        return max(0, peak_alone(representation, budget) - training) / budget

    track_share_of_budget.unit = "of the budget"


if __name__ == "__main__":
    print(peak(sys.argv[1], int(sys.argv[2])))
