"""The random states that a loader draws from, so that a pass can be read again."""

import random
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

__all__ = ["random_state", "restore_random_state"]


def random_state(examples: Any) -> dict[str, Tensor]:
    """The global states of torch, numpy and Python, and those of the generators that a DataLoader has of its own."""
    version, words, gauss = random.getstate()
    legacy: Any = numpy.random.get_state()
    _, keys, place, has_gauss, cached = legacy
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words], device="cpu"),
        "python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64, device="cpu"),
        "numpy": torch.tensor([*keys.tolist(), place, has_gauss], device="cpu"),
        "numpy.gauss": torch.tensor([cached], dtype=torch.float64, device="cpu"),
    }
    return states | {f"loader.{k}": one.get_state() for k, one in enumerate(_generators(examples))}


def restore_random_state(states: Mapping[str, Tensor], examples: Any) -> None:
    """Set all states to what `random_state` returned."""
    version, *words = states["python"].tolist()
    gauss = states["python.gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    *keys, place, has_gauss = states["numpy"].tolist()
    cached = float(states["numpy.gauss"])
    numpy.random.set_state(("MT19937", numpy.array(keys, dtype=numpy.uint32), place, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    for k, one in enumerate(_generators(examples)):
        if f"loader.{k}" in states:
            one.set_state(states[f"loader.{k}"])


def _generators(examples: Any) -> list[torch.Generator]:
    """The generators of a DataLoader and of its samplers, each once."""
    found: list[torch.Generator] = []
    for holder in (
        examples,
        _attribute(examples, "sampler"),
        _attribute(_attribute(examples, "batch_sampler"), "sampler"),
    ):
        one = _attribute(holder, "generator")
        if isinstance(one, torch.Generator) and not any(one is other for other in found):
            found.append(one)
    return found


def _attribute(value: Any, name: str) -> Any:
    return getattr(value, name, None)
