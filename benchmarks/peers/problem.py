"""What every library is given, and what it gives back: the same model, data and vector, and operations by name."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]
ByName = dict[str, Tensor]
DAMPING = 1e-2


class NotAvailable(Exception):
    """A library does not offer an operation for a model; says why in a few words."""


@dataclass(frozen=True)
class Operation:
    """Something to time, and the numbers in what it returns.

    Attributes:
        run: Called with nothing; may return anything.
        numbers: Turns what `run` returned into parameter-shaped tensors by name, or into one tensor; not timed.
        prepare: Called before each timed run, and not timed itself.
    """

    run: Callable[..., Any]
    numbers: Callable[[Any], ByName | Tensor]
    prepare: Callable[[], Any] | None = None


@dataclass
class Problem:
    """A classifier, its data in batches, and a vector.

    Attributes:
        model: Maps a batch of inputs to logits (n, c), in evaluation mode.
        inputs: All examples.
        kronecker: The types of the modules that the factored representations are about.
        batch: Examples in a batch.
    """

    model: nn.Module
    inputs: Tensor
    kronecker: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
    batch: int = 64
    targets: Tensor = field(init=False)
    v: ByName = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.model.eval()
        self.targets = torch.randint(self.outputs, (len(self.inputs),), generator=generator)
        self.v = {name: torch.randn(p.shape, generator=generator) for name, p in self.model.named_parameters()}

    @cached_property
    def outputs(self) -> int:
        """The number of classes."""
        with torch.no_grad():
            return int(self.model(self.inputs[:1]).shape[1])

    @property
    def batches(self) -> Batches:
        """The data, in order."""
        return list(zip(self.inputs.split(self.batch), self.targets.split(self.batch), strict=True))

    def copied(self) -> "Problem":
        """The same problem with a model of its own: a library may leave hooks behind."""
        return Problem(deepcopy(self.model), self.inputs, self.kronecker, self.batch)

    def factored(self) -> dict[str, nn.Module]:
        """The modules that the factored representations are about, by path."""
        return {path: module for path, module in self.model.named_modules() if isinstance(module, self.kronecker)}

    def weights_only(self) -> ByName:
        """The vector in the factored modules, zero in their biases.

        Libraries that keep a bias's block apart and those that append it to the inputs agree about the weights then.
        """
        names = [f"{path}.{name}" for path, module in self.factored().items() for name, _ in module.named_parameters()]
        return {name: self.v[name] * (not name.endswith("bias")) for name in names}

    def gradient_pass(self) -> None:
        """One plain gradient pass over the data: the unit of cost."""
        for inputs, targets in self.batches:
            self.model.zero_grad()
            nn.functional.cross_entropy(self.model(inputs), targets).backward()
        self.model.zero_grad()


def weights(found: Mapping[str, Tensor]) -> ByName:
    """The entries about weights: what libraries agree about that treat biases differently."""
    return {name: tensor for name, tensor in found.items() if not name.endswith("bias")}


def difference(found: ByName | Tensor, reference: ByName | Tensor) -> float:
    """The relative distance of two results in the Euclidean norm."""
    if isinstance(found, Tensor) and isinstance(reference, Tensor):
        left, right = found.flatten().double(), reference.flatten().double()
    elif isinstance(found, dict) and isinstance(reference, dict):
        if found.keys() != reference.keys():
            raise ValueError(f"results about other parameters: {sorted(found.keys() ^ reference.keys())}")
        left, right = (torch.cat([some[name].flatten().double() for name in found]) for some in (found, reference))
    else:
        raise TypeError(f"results of different kinds: {type(found).__name__} and {type(reference).__name__}")
    return float((left - right).norm() / right.norm())
