"""What the results of a run depend on, for each subject in full and quick."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

import nngeo

__all__ = ["SUBJECTS", "Settings"]


@dataclass(frozen=True)
class Settings:
    """What the results of a run depend on, and so what may not change while it is taken up again.

    Attributes:
        subject: Which model: "resnet", "gpt2" or "minilm".
        data: A folder of TinyImageNet; None for digits.
        steps: Of training, after which everything is measured.
        batch: Examples in a step of training.
        examples: How many the Fisher matrices are of.
        trials: Targets drawn for each of them.
        vectors: How many vectors on the unit sphere are averaged over.
        dampings: Values of r, in units of the mean eigenvalue of F: from that of its d eigenvalues, nearly all of them zero, to
            that of the few that are not.
        classes: The two classes that kernels are of.
        each: How many held-out images of each of them, at most.
        depths: Blocks in each stage.
        widths: Of the first layer of the ResNet and its stages, or of the GPT-2.
        length: Tokens in a sequence.
        seed: Of initial parameters, order of the data, draws and vectors.
    """

    subject: str
    data: str | None = None
    steps: tuple[int, ...] = ()
    batch: int = 64
    examples: int = 512
    trials: int = 5
    vectors: int = 10
    dampings: tuple[float, ...] = (1.0, 1e1, 1e2, 1e3, 1e4)
    classes: tuple[int, int] = (3, 5)
    each: int = 50
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 256, 512, 1024, 2048)
    length: int = 64
    seed: int = 0

    def described(self) -> dict[str, Any]:
        """For a file: with the versions that computed the results."""
        return asdict(self) | {"nngeo": nngeo.__version__, "torch": torch.__version__}


SUBJECTS = {
    "resnet": {
        "full": Settings("resnet", steps=(0, 10, 30, 100, 300)),
        "quick": Settings("resnet", steps=(0, 60), batch=32, examples=128, vectors=3, each=32),
    },
    "gpt2": {
        "full": Settings("gpt2", steps=(0, 100, 300, 1000, 3000), depths=(4,), widths=(96,)),
        "quick": Settings("gpt2", steps=(0, 200), batch=32, examples=128, vectors=5, depths=(4,), widths=(96,)),
    },
    "minilm": {
        "full": Settings("minilm", examples=256, length=32, vectors=5),
        "quick": Settings("minilm", examples=64, length=16, vectors=3),
    },
}
"""By subject and size."""
