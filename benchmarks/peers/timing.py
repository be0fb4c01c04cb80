"""Times of several operations measured in turn, as ratios: the machine's speed and load cancel."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median

from benchmarks.peers.problem import Operation

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = "wall"
"""Which one is read. That of the processor, with one thread, does not see what else a busy machine does."""


def seconds(operation: Operation) -> float:
    """The time of one run."""
    if operation.prepare is not None:
        operation.prepare()
    now = CLOCKS[clock]
    start = now()
    operation.run()
    return now() - start


def interleaved(operations: Mapping[str, Operation], repetitions: int, limit: float) -> dict[str, list[float]]:
    """Times of each operation, taken in turn.

    Args:
        operations: What to time; all have been run once.
        repetitions: How many times each is run.
        limit: Seconds for one operation in all; one that takes longer is run fewer times, once at least.
    """
    times: dict[str, list[float]] = {name: [] for name in operations}
    for _ in range(repetitions):
        for name, operation in operations.items():
            if sum(times[name]) + max(times[name], default=0.0) <= limit:
                times[name].append(seconds(operation))
    return times


def ratio(times: list[float], unit: list[float]) -> float:
    """The median of ratios of neighbouring measurements."""
    return median(a / b for a, b in zip(times, unit, strict=False))


def plain(run: Callable[[], object]) -> Operation:
    """An operation without numbers."""
    return Operation(run, lambda found: found)  # type: ignore[arg-type,return-value]


def warmed(run: Callable[[], object]) -> Operation:
    """An operation without numbers, run once untimed before each run: after a large one caches are cold."""
    return replace(plain(run), prepare=run)
