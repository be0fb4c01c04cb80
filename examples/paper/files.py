"""What a run has done so far, in files that are there whole or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["check_settings", "read_json", "write", "write_json", "write_torch"]


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """Save under another name, then rename: a run that is cut leaves the file as it was, or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    save(unfinished)
    os.replace(unfinished, path)


def write_torch(path: Path, content: Any) -> None:
    """Tensors and numbers, in the format of `torch.save`."""
    write(path, lambda place: torch.save(content, place))


def write_json(path: Path, content: Any) -> None:
    """Text that a person can read."""
    write(path, lambda place: place.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note what the results in a folder depend on; refuse the folder if its results are of something else.

    Raises:
        ValueError: They are, naming what differs.
    """
    path, wanted = folder / "settings.json", json.loads(json.dumps(settings))
    if not path.exists():
        return write_json(path, wanted)
    there = read_json(path)
    names = sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name))
    if names:
        differences = "; ".join(f"{name} was {there.get(name)!r} and is {wanted.get(name)!r}" for name in names)
        raise ValueError(
            f"'{folder}' has results of other settings ({differences}): give another --output, or remove it"
        )
