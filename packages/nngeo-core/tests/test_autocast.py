"""Autocast is set aside, and entered again for the model."""

import torch

from nngeo_core.sweep.autocast import autocast_set_aside, callers_autocast

CPU, ONES = torch.device("cpu"), torch.ones(2, 2)


def product() -> torch.dtype:
    return (ONES @ ONES).dtype


def test_the_callers_autocast_is_set_aside_and_found_again() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with autocast_set_aside(CPU):
            assert product() == torch.float32
            with autocast_set_aside(CPU):  # a pass inside a pass
                assert product() == torch.float32
                with callers_autocast(CPU):
                    assert product() == torch.bfloat16
        assert product() == torch.bfloat16
        with callers_autocast(CPU):  # nothing is set aside
            assert product() == torch.bfloat16


def test_without_autocast_nothing_changes() -> None:
    with autocast_set_aside(CPU), callers_autocast(CPU):
        assert product() == torch.float32
