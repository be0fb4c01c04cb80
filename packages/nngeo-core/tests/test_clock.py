"""Clock and PeakMemory: what they measure, and what they do with an exception."""

import sys
import time

import pytest
import torch

from nngeo_core.verbs.comparison.clock import Clock, PeakMemory

CPU = torch.device("cpu")


def test_times_by_name_and_their_median() -> None:
    clock = Clock(CPU)
    assert clock.timed("slow", lambda: time.sleep(0.02) or 7) == 7
    clock.seconds["many"] = [9.0, 1.0, 3.0, 2.0]
    assert clock.seconds["slow"][0] >= 0.02
    assert (clock.median("many"), clock.median("many", skip=1), clock.median("many", skip=4)) == (2.5, 2.0, 2.5)
    assert clock.median("never") is None


def test_what_raises_is_not_timed() -> None:
    clock = Clock(CPU)
    with pytest.raises(ZeroDivisionError):
        clock.timed("wrong", lambda: 1 / 0)
    assert clock.median("wrong") is None


def test_the_peak_is_what_was_in_use_for_a_moment_where_that_can_be_told() -> None:
    size = 64 * 2**20
    with PeakMemory(CPU) as memory:
        block = torch.ones(size, dtype=torch.uint8)
        time.sleep(0.05)
        del block
    assert (memory.bytes is None) == (sys.platform != "linux")
    assert memory.bytes is None or 0.8 * size < memory.bytes < 3 * size


def test_an_exception_ends_the_look() -> None:
    memory = PeakMemory(CPU)
    with pytest.raises(ZeroDivisionError), memory:
        raise ZeroDivisionError
    assert not memory._thread.is_alive()
