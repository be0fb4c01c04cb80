"""Everything that a run computes, stage by stage; what is in its file already is not computed again."""

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nngeo import (
    FIM_MonteCarlo,
    FMat,
    FVector,
    GramMatrix,
    KernelSnapshot,
    RepresentationComparison,
    compare_representations,
    effective_rank,
    kernel_alignment,
    target_alignment,
)

from .files import read_json, write_json
from .settings import Settings
from .subjects import Kernel, Subject
from .training import checkpoint

__all__ = ["comparisons", "kernels", "snapshots", "timed"]


@contextmanager
def timed(folder: Path, stage: str) -> Iterator[None]:
    """Say what begins, and note afterwards what it took: wall and processor seconds, and the process's largest memory."""
    tqdm.write(stage)
    wall, processor = time.perf_counter(), time.process_time()
    yield
    path = folder / "costs.json"
    costs = read_json(path) if path.exists() else {}
    costs[stage] = {
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "largest_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    write_json(path, costs)


def _load(subject: Subject, folder: Path, point: str) -> None:
    subject.model.load_state_dict(torch.load(checkpoint(folder, point), map_location="cpu", weights_only=True))


def comparisons(subject: Subject, settings: Settings, folder: Path) -> dict[str, RepresentationComparison]:
    """The representations against the exact matrix in each state; all about one set of draws for each state."""
    found = {}
    for point in subject.points:
        path = folder / f"comparison-{point}.json"
        if not path.exists():
            _load(subject, folder, point)
            with timed(folder, f"comparison at {point}"):
                write_json(path, _compared(subject, settings).to_dict())
        found[point] = RepresentationComparison.from_dict(read_json(path))
    return found


def _compared(subject: Subject, settings: Settings) -> RepresentationComparison:
    """The dampings are known once the trace is, of the same draws."""
    options: dict[str, Any] = {
        "variant": subject.variant,
        "function": subject.function,
        "trials": settings.trials,
    }
    seeded = torch.Generator().manual_seed
    exact = FIM_MonteCarlo(subject.model, subject.examples, "implicit", generator=seeded(settings.seed), **options)
    mean = float(exact.trace()) / exact.size()[0]
    return compare_representations(
        subject.model,
        subject.examples,
        subject.representations,
        dampings=[mean * factor for factor in settings.dampings],
        vectors=settings.vectors,
        per_layer=False,
        progress=True,
        generator=seeded(settings.seed),
        **options,
    )


def kernels(subject: Subject, kernel: Kernel, folder: Path) -> dict[str, FMat]:
    """The tangent kernel of the same images in each state."""
    found = {}
    for point in subject.points:
        path = folder / f"kernel-{point}.safetensors"
        if not path.exists():
            _load(subject, folder, point)
            with timed(folder, f"kernel at {point}"):
                made = GramMatrix(subject.model, kernel.examples, function=kernel.function, progress=True)
                made.save(path)
        found[point] = FMat.load(path)
    return found


def snapshots(found: Sequence[FMat], labels: torch.Tensor) -> list[KernelSnapshot]:
    """What is said of each kernel: its eigenvalues, and its alignments with the classes and with the first one."""
    targets = FVector(torch.where(labels == labels[-1], 1.0, -1.0).unsqueeze(0))
    return [
        KernelSnapshot(
            one,
            one.eigendecomposition().values,
            effective_rank(one),
            target_alignment(one, targets),
            kernel_alignment(one, found[0]),
        )
        for one in found
    ]
