"""Images of 64 x 64 pixels and their classes: TinyImageNet from a folder, or the digits of scikit-learn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

__all__ = ["DEVIATION", "MEAN", "SIDE", "Images", "digits", "order", "tiny_imagenet"]

SIDE = 64
MEAN, DEVIATION = (0.480, 0.448, 0.398), (0.277, 0.269, 0.282)  # of TinyImageNet's pixels, by channel


@dataclass(frozen=True)
class Images:
    """Images that are read when they are asked for.

    Attributes:
        targets: The class of each, shape (n,).
        read: Maps a position to an image, shape (3, 64, 64).
        classes: What the classes are called.
    """

    targets: Tensor
    read: Callable[[int], Tensor]
    classes: Sequence[str]

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The images at some positions, shape (n, 3, 64, 64), and their classes."""
        return torch.stack([self.read(i) for i in chosen.tolist()]), self.targets[chosen]

    def of_classes(self, first: int, second: int, each: int) -> tuple[Tensor, Tensor]:
        """As many images of each of two classes, sorted by class, and their classes; fewer if there are no more."""
        places = [(self.targets == one).nonzero().flatten()[:each] for one in (first, second)]
        if first == second or min(map(len, places)) == 0:
            raise ValueError(
                f"classes {first} and {second} have {[len(one) for one in places]} images: give two others"
            )
        return self.batch(torch.cat(places))


def order(n: int, size: int, step: int, seed: int) -> Tensor:
    """The positions that make the batch of a step of training: a function of step and seed, so that a run can go on."""
    epoch, place = divmod(step, max(1, n // size))
    mixed = torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch))
    return mixed[place * size : (place + 1) * size]


def digits() -> tuple[Images, Images]:
    """The 1,797 digits of scikit-learn, 8 x 8 pixels, enlarged, in [-1, 1]: those to train on, and every fifth."""
    found = load_digits()
    pixels = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    targets, held_out = torch.tensor(found.target), torch.arange(len(pixels)) % 5 == 0

    def part(chosen: Tensor) -> Images:
        kept = pixels[chosen]
        return Images(targets[chosen], lambda i: _enlarged(kept[i]), [str(name) for name in found.target_names])

    return part(~held_out), part(held_out)


def _enlarged(image: Tensor) -> Tensor:
    wide = nn.functional.interpolate(image[None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return wide[0].expand(3, -1, -1)


def tiny_imagenet(folder: Path) -> tuple[Images, Images]:
    """TinyImageNet as it is distributed: `train/<wnid>/images/*.JPEG`, `val/images/` and `val/val_annotations.txt`.

    Raises:
        ValueError: The folder has another layout.
    """
    classes = sorted(path.name for path in (folder / "train").glob("*/") if (path / "images").is_dir())
    annotations = folder / "val" / "val_annotations.txt"
    if not classes or not annotations.is_file():
        raise ValueError(
            f"'{folder}' is not laid out as TinyImageNet: expected train/<wnid>/images/*.JPEG (found {len(classes)} classes) "
            f"and val/val_annotations.txt ({'found' if annotations.is_file() else 'not found'})"
        )
    train = [(path, name) for name in classes for path in sorted((folder / "train" / name / "images").glob("*.JPEG"))]
    lines = [line.split("\t") for line in annotations.read_text(encoding="utf-8").splitlines()]
    held_out = [(folder / "val" / "images" / line[0], line[1]) for line in lines]
    unknown = sorted({name for _, name in held_out} - set(classes))
    if unknown:
        raise ValueError(f"'{annotations}' has classes without a folder in '{folder / 'train'}': {', '.join(unknown)}")
    return _from_files(train, classes), _from_files(held_out, classes)


def _from_files(listed: Sequence[tuple[Path, str]], classes: Sequence[str]) -> Images:
    if not listed:
        raise ValueError(f"no images of the classes {', '.join(classes[:3])}, ...: expected *.JPEG files")
    targets = torch.tensor([classes.index(name) for _, name in listed])
    return Images(targets, lambda i: _decoded(listed[i][0]), classes)


def _decoded(path: Path) -> Tensor:
    """Colours as numbers whose mean is about 0 and variance about 1; grey images have three equal channels."""
    with Image.open(path) as image:
        pixels = numpy.asarray(image.convert("RGB").resize((SIDE, SIDE)), dtype=numpy.float32) / 255
    normalised = (torch.from_numpy(pixels) - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    return normalised.permute(2, 0, 1).contiguous()
