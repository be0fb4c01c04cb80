"""Reproduce figures 3 to 7 of the NNGeometry paper (George 2021), and the same on a GPT-2 and a sentence encoder.

A run that is cut goes on where it was when it is started again with the same options.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .figures import draw_agreements, draw_kernels, draw_solves, report
from .files import check_settings, write
from .settings import SUBJECTS, Settings
from .stages import comparisons, kernels, snapshots, timed
from .subjects import make_subject

__all__ = ["main", "run"]


def run(settings: Settings, folder: Path, device: torch.device) -> str:
    """Train, compare, compute kernels, draw; returns the numbers as Markdown, which are written beside the pictures.

    Raises:
        ValueError: The folder has results of other settings.
    """
    check_settings(folder, settings.described())
    subject = make_subject(settings, device)
    with timed(folder, "states"):
        subject.write_states(folder)
    found = comparisons(subject, settings, folder)
    draw_agreements(found, folder)
    draw_solves(found, folder)
    evolution = {}
    if subject.kernel is not None:
        matrices = kernels(subject, subject.kernel, folder)
        evolution = dict(zip(matrices, snapshots(list(matrices.values()), subject.kernel.labels), strict=True))
        draw_kernels(subject.points, list(evolution.values()), subject.kernel.labels, folder)
    text = report(found, evolution, folder)
    write(folder / "numbers.md", lambda path: path.write_text(text, encoding="utf-8"))
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.paper", description=__doc__)
    parser.add_argument("--subject", choices=sorted(SUBJECTS), default="resnet")
    parser.add_argument("--quick", action="store_true", help="two states and fewer examples")
    parser.add_argument("--data", type=Path, help="folder of TinyImageNet for the ResNet; digits without it")
    parser.add_argument("--classes", type=int, nargs=2, metavar=("C1", "C2"), help="the classes of the kernels")
    parser.add_argument("--output", type=Path, default=Path("build/paper"), help="folder for results and pictures")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    given = parser.parse_args(arguments)
    if given.data is not None and given.subject != "resnet":
        parser.error("--data is for --subject resnet: the others are measured on text")
    settings = SUBJECTS[given.subject]["quick" if given.quick else "full"]
    if given.data is not None:
        settings = replace(settings, data=str(given.data.resolve()))
    if given.classes is not None:
        settings = replace(settings, classes=tuple(given.classes))
    folder = given.output / (f"{given.subject}-quick" if given.quick else given.subject)
    try:
        print(run(settings, folder, given.device))
    except ValueError as error:
        parser.error(str(error))
    print(f"Numbers and pictures: {folder}")


if __name__ == "__main__":
    main()
