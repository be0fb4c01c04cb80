"""Compute matrices in processes that are killed at random moments, and say whether the results are the same bit for bit.

`python killed_passes.py FOLDER KILLS NAME...` imports the library once and forks the processes to be killed: nothing was
computed in it before, so that they are as good as new ones. It prints one line for each representation.
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import sympy  # noqa: F401 (torch imports it late: not in each process, then)
import torch
from torch import Tensor, nn

from nngeo import FIM, PMat
from nngeo_core.plugins import registry

BATCHES = 12


class Loader:
    """Batches of different sizes, each announced by a byte."""

    def __init__(self, announce: int) -> None:
        self.announce = announce
        self.x = torch.randn(3 * BATCHES, 2, 5, generator=torch.Generator().manual_seed(0))

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        for place in range(BATCHES):
            os.write(self.announce, b".")
            yield (self.x[3 * place : 3 * place + 1 + place % 3],)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4))


def started(name: str, result: Path, checkpoint: Path) -> tuple[int, int]:
    """A process that computes a matrix and saves it, and where it announces its batches."""
    heard, announce = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            FIM(model(), Loader(announce), name, checkpoint=checkpoint, checkpoint_every=2).save(result)
            code = 0
        finally:
            os._exit(code)
    os.close(announce)
    return process, heard


def ended(process: int, heard: int, batches: int, pause: float) -> bool:
    """Kill a process a while after it has read so many batches; whether it ended by itself before, without an error."""
    for _ in range(batches):
        if not os.read(heard, 1):
            break
    time.sleep(pause)
    os.kill(process, signal.SIGKILL)
    os.close(heard)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"a process failed with status {status}")
    return status == 0


def completed(process: int, heard: int) -> bool:
    """Let a process end; whether it did so without an error."""
    while os.read(heard, 100):
        pass
    os.close(heard)
    return os.waitpid(process, 0)[1] == 0


def same(first: PMat, second: PMat) -> bool:
    """Whether two matrices are equal bit for bit, in numbers and count."""
    pairs = zip(first.tensors().items(), second.tensors().items(), strict=True)
    return first.n_examples == second.n_examples and all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


def main(folder: Path, kills: int, names: list[str]) -> None:
    """Kill so many processes for each representation, and let those end that come to it."""
    torch.set_num_threads(1)
    registry.names("rules")  # so that plugins are loaded
    source = random.Random(0)
    for name in names:
        expected, found, checkpoint = folder / f"{name}.expected", folder / f"{name}.found", folder / name
        assert completed(*started(name, expected, folder / "other"))
        killed, resumed, outcomes, done = 0, 0, Counter[str](), False
        while killed < kills or not done:
            resumed += any(checkpoint.glob("*.safetensors"))
            child = started(name, found, checkpoint)
            batches, pause = source.randrange(1, BATCHES + 1), source.uniform(0, 0.02)
            done = ended(*child, batches, pause) if killed < kills else completed(*child)
            killed += not done
            if done:
                outcomes["the same" if same(PMat.load(expected), PMat.load(found)) else "different"] += 1
        left = len(list(checkpoint.iterdir()))
        print(f"{name}: killed {killed}, resumed {resumed > 0}, {' and '.join(outcomes)}, {left} files left")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
