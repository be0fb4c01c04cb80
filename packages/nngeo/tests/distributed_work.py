"""What the processes of test_distributed.py compute, each on its own shard."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nngeo import FIM, GGN, EmpiricalFIM, PMat

N_EXAMPLES = 11
SHARDS = {1: [11], 2: [8, 3], 3: [6, 0, 5], 4: [4, 1, 0, 6]}
"""How many examples each process has, by the number of processes."""

ANY_LAYER: list[Any] = [
    "dense",
    "blockdiag",
    "diag",
    "quasidiag",
    "lowrank",
    "eye",
    "auto",
    {"0": "ekfac", None: "diag"},
]
LINEAR_LAYERS = ["kfac", "ekfac", "kfac-reduce", "ekfac-reduce"]


def model(norm: bool = False) -> nn.Module:
    """The same network on every process."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        middle = nn.LayerNorm(3) if norm else nn.Tanh()
        return nn.Sequential(nn.Linear(4, 3), middle, nn.Linear(3, 3)).double()


def data() -> tuple[Tensor, Tensor]:
    """All examples."""
    source = torch.Generator().manual_seed(5)
    x = torch.randn(N_EXAMPLES, 4, generator=source, dtype=torch.float64)
    return x, torch.randint(3, (N_EXAMPLES,), generator=source)


def shard(size: int, rank: int) -> list[tuple[Tensor, Tensor]]:
    """The batches of one process, of three examples at most."""
    counts = SHARDS[size]
    start = sum(counts[:rank])
    x, y = (part[start : start + counts[rank]] for part in data())
    return list(zip(x.split(3), y.split(3), strict=True)) if len(x) else []


def mine() -> list[tuple[Tensor, Tensor]]:
    """The batches of this process."""
    return shard(dist.get_world_size(), dist.get_rank())


def matrices(loader: Any, **options: Any) -> dict[str, PMat]:
    """What every verb makes of a loader."""
    named: dict[str, PMat] = {}
    for choices, norm in ((ANY_LAYER, True), (LINEAR_LAYERS, False)):
        found = FIM(model(norm), loader, choices, **options)
        named |= {f"FIM {choice}": F for choice, F in zip(choices, found, strict=True)}
    named["GGN"] = GGN(model(), loader, "dense", loss=cross_entropy, **options)
    for centred in (False, True):
        for choice in ("dense", "blockdiag", "diag"):
            F = EmpiricalFIM(model(), loader, choice, variant="classif_logits", centred=centred, **options)
            named[f"EmpiricalFIM {choice} centred={centred}"] = F
    for choice in ("dense", "kfac", "ekfac", "lowrank", "auto"):
        F = FIM(model(), loader, choice, **options)
        F.update([(x + 1, y) for x, y in loader], 0.25)
        named[f"update {choice}"] = F
    return named


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """One loss for each example."""
    return nn.functional.cross_entropy(outputs, y, reduction="none")


def all_matrices() -> dict[str, tuple[Tensor, int | None, list[bytes]]]:
    """Each matrix's entries, its number of examples, and its tensors' bytes."""
    return {name: described(F) for name, F in matrices(mine(), distributed=True).items()}


def described(F: PMat) -> tuple[Tensor, int | None, list[bytes]]:
    stored = [tensor.numpy().tobytes() for tensor in F.tensors().values()]
    return F.get_dense_tensor(), F.n_examples, stored


if __name__ == "__main__":
    from processes import main

    main({"all_matrices": all_matrices})
