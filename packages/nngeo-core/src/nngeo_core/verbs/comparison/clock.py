"""How long operations take, and how much memory grows meanwhile."""

import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch
from tqdm import tqdm

__all__ = ["Clock", "PeakMemory", "with_bar"]

T = TypeVar("T")

_STATM = Path("/proc/self/statm")
_PERIOD = 0.005
"""Seconds between two looks at the memory in use."""


class Clock:
    """Wall-clock times of operations by name, with what is queued on an accelerator waited for.

    Args:
        device: Where the operations run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def timed(self, name: str, run: Callable[[], T]) -> T:
        """The result of a function, whose time is noted; not if it raises."""
        self._wait()
        start = time.perf_counter()
        found = run()
        self._wait()
        self.seconds[name].append(time.perf_counter() - start)
        return found

    def median(self, name: str, skip: int = 0) -> float | None:
        """The median of the noted times after the first `skip` ones, where there are any; else of all."""
        times = self.seconds[name][skip:] or self.seconds[name]
        return statistics.median(times) if times else None

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class PeakMemory:
    """By how much memory grows at most within a `with` block: `bytes`, None where that cannot be told.

    On a CUDA device, of the tensors there, exactly. Otherwise of the process's resident memory, looked at every 5 ms, which
    only Linux tells: what the allocator kept from before and uses again does not count.

    Args:
        device: Where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._before = self._highest = 0
        self.bytes: int | None = None

    def __enter__(self) -> "PeakMemory":
        """Note what is in use, and start looking."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before = torch.cuda.memory_allocated(self._cuda)
        elif sys.platform == "linux":
            self._before = self._highest = _resident()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop looking."""
        if self._cuda is not None:
            self.bytes = torch.cuda.max_memory_allocated(self._cuda) - self._before
        elif sys.platform == "linux":
            self._done.set()
            self._thread.join()
            self.bytes = max(0, max(self._highest, _resident()) - self._before)

    def _look(self) -> None:
        while not self._done.wait(_PERIOD):
            self._highest = max(self._highest, _resident())


def with_bar(steps: Iterable[int], label: str, progress: bool) -> Iterable[int]:
    """The steps, one for each vector, counted by a progress bar if that is wanted."""
    return tqdm(steps, desc=label, unit="vector") if progress else steps


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
