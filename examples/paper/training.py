"""Training that leaves the model's state at some steps in files, and goes on where it was cut."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from .files import write_torch

__all__ = ["Training", "checkpoint", "train"]

Batch = tuple[Tensor, ...]


class Training:
    """What a model learns from.

    Attributes:
        batch: Maps the number of a step to its batch: the inputs first.
        loss: Maps model and batch to the loss.
        optimizer: Makes the optimizer of some parameters.
        calibrating: How many batches the running statistics of batch normalisation are computed from anew for a checkpoint:
            after few steps their moving averages have not come near the statistics that the network was trained with.
    """

    def __init__(
        self,
        batch: Callable[[int], Batch],
        loss: Callable[[nn.Module, Batch], Tensor],
        optimizer: Callable[..., torch.optim.Optimizer],
        calibrating: int = 0,
    ) -> None:
        self.batch, self.loss, self.optimizer, self.calibrating = batch, loss, optimizer, calibrating


def checkpoint(folder: Path, name: str) -> Path:
    """Where the model's state of that name is."""
    return folder / "checkpoints" / f"{name}.pt"


def train(model: nn.Module, training: Training, steps: Sequence[int], folder: Path, every: int = 20) -> None:
    """Train from step 0 to the last of `steps`, and write the model's state at each of them.

    Args:
        model: As it is initialised; also where a run is taken up again.
        training: What it learns from.
        steps: At which steps its state is written.
        folder: Where to.
        every: After how many steps the state of the training is written, to go on from.
    """
    places = {step: checkpoint(folder, f"step-{step}") for step in steps}
    if all(place.exists() for place in places.values()):
        return
    optimizer = training.optimizer(model.parameters())
    resumed, last = checkpoint(folder, "training"), max(steps)
    first = _restore(resumed, model, optimizer) if resumed.exists() else 0
    if any(step < first and not place.exists() for step, place in places.items()):
        raise ValueError(f"a state from before step {first} is gone from '{resumed.parent}': remove {resumed.name} too")
    for step in tqdm(range(first, last + 1), desc="training", unit="step", initial=first, total=last + 1):
        if step in places and not places[step].exists():
            _write_state(model, training, places[step])
        if step < last:
            _advance(model, optimizer, training, step)
            if (step + 1) % every == 0:
                state = {"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
                write_torch(resumed, state)
    resumed.unlink(missing_ok=True)


def _advance(model: nn.Module, optimizer: torch.optim.Optimizer, training: Training, step: int) -> None:
    model.train()
    optimizer.zero_grad()
    with torch.random.fork_rng():  # dropout's masks: those of the step
        torch.manual_seed(step)
        training.loss(model, training.batch(step)).backward()
    optimizer.step()


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    return int(found["step"])


def _write_state(model: nn.Module, training: Training, path: Path) -> None:
    """The running statistics in the file are those of the batches at hand; the model keeps its own."""
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    if training.calibrating:
        update_bn((training.batch(step)[0] for step in range(training.calibrating)), model)
    write_torch(path, model.state_dict())
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
