"""Watch the neural tangent kernel of a digit classifier learn its task: Gram matrices and kernel PCA along training.

The kernel is that of the binary function f_c2 - f_c1 at held-out digits of two classes, as in section 3.2 of the NNGeometry
paper (George 2021). Saves pictures, prints the evolution, and fails unless the kernel ends better aligned with the classes
than it started. Run it as a script; `--help` lists the options.
"""

import argparse
from pathlib import Path
from time import perf_counter

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from nngeo import (
    FVector,
    KernelPCA,
    KernelSnapshot,
    binary_function,
    kernel_evolution,
    plot_evolution,
    plot_gram,
    plot_kernel_pca,
    plot_spectrum,
)

matplotlib.use("Agg")  # pictures go to files: no display is needed
from matplotlib import pyplot as plt

CHECKPOINTS = (0, 1, 2, 5, 10, 20)
"""Epochs after which the kernel is computed."""


def load_images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 1,797 digits of scikit-learn, 8 x 8 pixels scaled to [0, 1]: those to train on, and every fifth held out."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    targets = torch.tensor(digits.target)
    held_out = torch.arange(len(targets)) % 5 == 0
    return images[~held_out], targets[~held_out], images[held_out], targets[held_out]


def make_model() -> nn.Sequential:
    """Two convolutions, a halving of the image after the second, and two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def train(model: nn.Module, images: Tensor, targets: Tensor) -> list[dict[str, Tensor]]:
    """Train with stochastic gradient descent; returns copies of the state at the checkpoints."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    states = [_state(model)]
    for epoch in range(1, max(CHECKPOINTS) + 1):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), targets[chosen]).backward()
            optimizer.step()
        if epoch in CHECKPOINTS:
            states.append(_state(model))
    return states


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def save_pictures(snapshots: list[KernelSnapshot], labels: Tensor, folder: Path) -> None:
    """Gram matrices over kernel PCA, checkpoint by checkpoint; then alignments and spectra."""
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(2, len(snapshots), figsize=(2.2 * len(snapshots), 4.6))
    for epoch, snapshot, (above, below) in zip(CHECKPOINTS, snapshots, axes.T, strict=True):
        plot_gram(snapshot.kernel, labels, above).set_title(f"epoch {epoch}")
        plot_kernel_pca(KernelPCA(snapshot.kernel), labels, below)
    figure.savefig(folder / "kernels.png", bbox_inches="tight", dpi=120)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    plot_evolution(snapshots, CHECKPOINTS, left).set_xlabel("epoch")
    for epoch, snapshot in zip(CHECKPOINTS, snapshots, strict=True):
        plot_spectrum(snapshot.kernel, right, label=f"epoch {epoch}")
    right.legend()
    figure.savefig(folder / "evolution.png", bbox_inches="tight", dpi=120)


def main() -> None:
    """Train, compute the kernels, print and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs=2, default=(3, 5), metavar=("C1", "C2"))
    parser.add_argument("--output", type=Path, default=Path("build/ntk_evolution"))
    arguments = parser.parse_args()
    first, second = arguments.classes
    torch.manual_seed(0)
    images, targets, held_out, labels = load_images()
    model = make_model()
    states = train(model, images, targets)
    chosen = (labels == first) | (labels == second)
    signs = torch.where(labels[chosen] == second, 1.0, -1.0)
    start = perf_counter()
    snapshots = kernel_evolution(
        model, states, held_out[chosen], FVector(signs.unsqueeze(0)), function=binary_function(model, first, second)
    )
    seconds = perf_counter() - start
    print(f"{len(snapshots)} kernels of {int(chosen.sum())} digits {first} and {second} in {seconds:.2f} s")
    print("epoch  alignment with the classes  with the first kernel  effective rank")
    for epoch, one in zip(CHECKPOINTS, snapshots, strict=True):
        print(f"{epoch:5d}  {one.target_alignment:26.3f}  {one.first_alignment:21.3f}  {one.effective_rank:14.1f}")
    save_pictures(snapshots, labels[chosen], arguments.output)
    print(f"Pictures: {arguments.output}")
    before, after = snapshots[0].target_alignment, snapshots[-1].target_alignment
    assert before is not None and after is not None and after > before, "the kernel did not align with its task"


if __name__ == "__main__":
    main()
