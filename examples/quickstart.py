"""Train a small convolutional network on handwritten digits, then compare its Fisher matrix across representations.

Prints what each representation says of the same matrix, takes one natural-gradient step with it, and saves pictures.
Run it with `python -m nox -s quickstart`, or as a script; `--help` lists the options.
"""

import argparse
import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from nngeo import (
    FIM,
    LayerCollection,
    PMat,
    PMatBlockDiag,
    PMatDense,
    PMatDiag,
    PMatEKFAC,
    PMatKFAC,
    PMatQuasiDiag,
    PVector,
)

matplotlib.use("Agg")  # pictures go to files: no display is needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

REPRESENTATIONS = (PMatDense, PMatBlockDiag, PMatEKFAC, PMatKFAC, PMatQuasiDiag, PMatDiag)
REGUL = 1e-2


class Result(NamedTuple):
    """One representation's matrix, and the natural-gradient step that it gives.

    Attributes:
        matrix: The Fisher matrix F.
        seconds: What it took to compute.
        step: -(F + regul I)^-1 gradient.
        length: How far to go along the step.
        loss: The loss there.
    """

    matrix: PMat
    seconds: float
    step: PVector
    length: Tensor
    loss: float


def load_images() -> tuple[TensorDataset, TensorDataset]:
    """The 1,797 digits of scikit-learn, 8 x 8 pixels scaled to [0, 1]: those to train on, and every fifth to test."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    targets = torch.tensor(digits.target)
    held_out = torch.arange(len(targets)) % 5 == 0
    return TensorDataset(images[~held_out], targets[~held_out]), TensorDataset(images[held_out], targets[held_out])


def make_model() -> nn.Sequential:
    """A network of 2,382 parameters, small enough for its dense Fisher matrix."""
    layers = OrderedDict(
        conv1=nn.Conv2d(1, 8, 3, padding=1),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(8, 12, 3, padding=1),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        hidden=nn.Linear(48, 24),
        relu3=nn.ReLU(),
        output=nn.Linear(24, 10),
    )
    return nn.Sequential(layers)


def train(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]], epochs: int, device: torch.device) -> None:
    """Minimise the cross-entropy with Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in tqdm(range(epochs), desc="training", unit="epoch"):
        for images, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images.to(device)), targets.to(device)).backward()
            optimizer.step()
    optimizer.zero_grad()


def one_pass(data: TensorDataset, device: torch.device, description: str) -> Iterator[tuple[Tensor, Tensor]]:
    """All of the data in batches, with a progress bar that goes away at the end."""
    for images, targets in tqdm(DataLoader(data, batch_size=128), desc=description, unit="batch", leave=False):
        yield images.to(device), targets.to(device)


def mean_loss(model: nn.Module, data: TensorDataset, device: torch.device, description: str = "loss") -> Tensor:
    """The cross-entropy averaged over all of the data."""
    losses = [
        nn.functional.cross_entropy(model(images), targets, reduction="sum")
        for images, targets in one_pass(data, device, description)
    ]
    return torch.stack(losses).sum() / len(data)


def accuracy(model: nn.Module, data: TensorDataset, device: torch.device) -> float:
    """The share of images whose class is found."""
    hits = [(model(images).argmax(1) == targets).sum() for images, targets in one_pass(data, device, "accuracy")]
    return float(torch.stack(hits).sum() / len(data))


def fisher(
    representation: type[PMat], model: nn.Module, data: TensorDataset, device: torch.device
) -> tuple[PMat, float]:
    """The Fisher matrix over all of the data, and the seconds it took."""
    print(f"Computing {representation.__name__}", flush=True)
    start = perf_counter()
    matrix = FIM(
        model=model,
        loader=DataLoader(data, batch_size=128),
        representation=representation,
        n_output=10,
        variant="classif_logits",
        device=device,
        progress=True,
    )
    return matrix, perf_counter() - start


def best_length(step: PVector, gradient: PVector, exact: PMat) -> Tensor:
    """The r that minimises r g.s + r^2 s.(F + regul I) s / 2 with the exact F (Martens & Grosse 2015, section 6.4)."""
    return -(gradient @ step) / (exact.vTMv(step) + REGUL * (step @ step))


def loss_after(step: PVector, model: nn.Module, data: TensorDataset, device: torch.device) -> float:
    """The loss of a copy of the model that has really taken the step."""
    moved = copy.deepcopy(model)
    step.add_to_model(moved)
    return mean_loss(moved, data, device, "loss after the step").item()


def compare(model: nn.Module, data: TensorDataset, gradient: PVector, device: torch.device) -> dict[str, Result]:
    """Each representation's matrix and its step -(F + regul I)^-1 gradient."""
    matrices = {kind.__name__: fisher(kind, model, data, device) for kind in REPRESENTATIONS}
    exact = matrices["PMatDense"][0]
    results = {}
    for name, (matrix, seconds) in matrices.items():
        step = -matrix.solve(gradient, regul=REGUL)
        length = best_length(step, gradient, exact)
        results[name] = Result(matrix, seconds, step, length, loss_after(length * step, model, data, device))
    return results


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [[f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)] for row in [header, *rows]]
    return "\n".join("  ".join(line) for line in lines)


def value_table(results: Mapping[str, Result], v: PVector, reference: Result) -> str:
    """What each representation says: trace, quadratic form, step, and the loss after `length * step`."""
    header = ("", "seconds", "trace", "v^T F v", "|step|", "cosine", "length", "loss after")
    rows = [
        (
            name,
            f"{result.seconds:.2f}",
            f"{result.matrix.trace():.3f}",
            f"{result.matrix.vTMv(v):.3f}",
            f"{result.step.norm():.4f}",
            f"{result.step @ reference.step / (result.step.norm() * reference.step.norm()):.3f}",
            f"{result.length:.4f}",
            f"{result.loss:.4f}",
        )
        for name, result in results.items()
    ]
    return table(header, rows)


def error_table(results: Mapping[str, Result], v: PVector, exact: PMat) -> str:
    """Relative differences from the dense matrix."""
    dense = exact.get_dense_tensor()
    rows = []
    for name, (matrix, *_) in results.items():
        entries = (matrix.get_dense_tensor() - dense).norm() / dense.norm()
        diagonal = (matrix.get_diag() - exact.get_diag()).norm() / exact.get_diag().norm()
        trace = (matrix.trace() / exact.trace() - 1).abs()
        form = (matrix.vTMv(v) / exact.vTMv(v) - 1).abs()
        rows.append((name, *(f"{error:.1e}" for error in (entries, diagonal, trace, form))))
    return table(("", "all entries", "diagonal", "trace", "v^T F v"), rows)


def correlations(matrix: PMat) -> Tensor:
    """|F_ij| / sqrt(F_ii F_jj), and zero where a parameter has no effect: behind a unit that never fires."""
    scale = matrix.get_diag().rsqrt()
    scale[scale.isinf()] = 0
    return (matrix.get_dense_tensor().abs() * scale * scale[:, None]).clamp(max=1).cpu()


def draw(axes: Axes, matrix: PMat, title: str) -> AxesImage:
    """Show the correlations, with a line and a name for each layer."""
    layers: LayerCollection = matrix.layer_collection
    d = layers.numel()
    shown = nn.functional.adaptive_max_pool2d(correlations(matrix)[None], 800)[0]  # a thin diagonal stays visible
    image = axes.imshow(shown.numpy(), cmap="Blues", vmin=0, vmax=1, extent=(0, d, d, 0))
    places = layers.slices().values()
    for place in list(places)[1:]:
        axes.axhline(place.start, color="tab:orange", linewidth=0.8)
        axes.axvline(place.start, color="tab:orange", linewidth=0.8)
    middles = [(place.start + place.stop) / 2 for place in places]
    axes.set_xticks(middles, layers, rotation=45, ha="right")
    axes.set_yticks(middles, layers)
    axes.set_title(f"{title}, {d:,} x {d:,}")
    return image


def save_pictures(results: Mapping[str, Result], folder: Path) -> None:
    """One picture for each representation, and one of all side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, shown in [*((name, [name]) for name in results), ("side_by_side", list(results))]:
        rows, columns = (2, len(shown) // 2) if len(shown) > 1 else (1, 1)
        size = (6.5 * columns, 6 * rows)
        figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for axes, name in zip(grid.flat, shown, strict=True):
            image = draw(axes, results[name].matrix, name)
        figure.colorbar(image, ax=grid, label=r"$|F_{ij}| \, / \, \sqrt{F_{ii} F_{jj}}$", shrink=0.8)
        figure.savefig(folder / f"{stem}.png", dpi=130)
        plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("build/quickstart"), help="folder for the pictures")
    return parser.parse_args()


def main() -> None:
    """Train, compute the Fisher matrices, compare them, draw them."""
    arguments = parse_arguments()
    torch.manual_seed(0)
    device: torch.device = arguments.device
    data, test_data = load_images()
    model = make_model().to(device)
    train(model, DataLoader(data, batch_size=64, shuffle=True), arguments.epochs, device)
    loss = mean_loss(model, data, device)
    loss.backward()
    gradient, v = PVector.from_model_grad(model), PVector.from_model(model).detach()
    recognised = accuracy(model, test_data, device)
    print(f"{len(data)} images to train on, {recognised:.1%} of {len(test_data)} others recognised")
    print(gradient.layer_collection)

    results = compare(model, data, gradient, device)
    reference = results["PMatDense"]
    print(f"\nThe loss is {loss:.4f} before the step -(F + {REGUL} I)^-1 gradient. v: the parameters; cosine: with the")
    print("dense matrix's step; length: how far to go along the step, according to the dense matrix.")
    print(value_table(results, v, reference))
    print("\nRelative error against the dense matrix")
    print(error_table(results, v, reference.matrix))
    save_pictures(results, arguments.output)
    print(f"\nPictures: {arguments.output}")


if __name__ == "__main__":
    main()
