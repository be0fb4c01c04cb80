"""What the processes of test_distributed.py compute, each on its own shard."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nngeo import FIM, GGN, EmpiricalFIM, GramMatrix, Hessian, Jacobian, PMat, PVector
from nngeo_core.vectors.fvector import FVector
from nngeo_reprs.kfac_reduce import PMatKFACReduce

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
        return nn.Sequential(nn.Linear(4, 3), middle, nn.Linear(3, 3)).double().to(device())


def device() -> torch.device:
    """This process's GPU if the processes are joined by nccl."""
    on_gpus = dist.is_initialized() and "nccl" in dist.get_backend_config(dist.group.WORLD)
    return torch.device("cuda", dist.get_rank()) if on_gpus else torch.device("cpu")


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


BY_BATCH = "branches by the batch"
"""Of a layer that some batches do not reach, Kronecker factors count the examples of the batches that do."""


class Branches(nn.Module):
    """A layer for all examples, one for those that begin with a positive number, and one for nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        chosen = x[:, :1] > 0
        if chosen.any():
            hidden = torch.where(chosen, torch.tanh(self.second(hidden)), hidden)
        outputs: Tensor = self.head(hidden)
        return outputs


def branches(loader: Any, **options: Any) -> dict[str, Tensor]:
    """Matrices of a network of which one process alone reaches a layer, where there are several."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(4)
        network = Branches().double().to(device())
    exact, factored = ["dense", "blockdiag", "diag", "quasidiag", "lowrank"], ["auto", *LINEAR_LAYERS]
    found = FIM(network, loader, exact + factored, **options)
    F = FIM(network, loader, "implicit", **options)
    names = [f"branches {choice}" for choice in exact] + [f"{BY_BATCH}, {choice}" for choice in factored]
    results = entries(dict(zip(names, found, strict=True)))
    results["branches implicit"] = F.mv(torch.linspace(-1, 2, F.size(0), dtype=torch.float64, device=device())[None])
    results["branches blocks"] = F.convert("blockdiag").mv(results["branches implicit"])
    return results


def one_reaches(batches: list[tuple[Tensor, Tensor]], rank: int) -> list[tuple[Tensor, Tensor]]:
    """The batches of a process, those of the first one so that they take the branch."""
    sign = 1 if rank == 0 else -1
    return [(torch.cat((sign * x[:, :1].abs(), x[:, 1:]), 1), y) for x, y in batches]


def entries(named: dict[str, PMat]) -> dict[str, Tensor]:
    """The entries of each matrix, its stored tensors, and the number of its examples."""
    found = {}
    for name, F in named.items():
        found[name], found[f"{name} examples"] = F.get_dense_tensor(), torch.tensor([float(F.n_examples or 0)])
        v = torch.linspace(-1, 2, 2 * F.size(0), dtype=torch.float64, device=device()).view(2, -1)
        if isinstance(F, PMatKFACReduce):
            F.decompose()  # together; the other ones decompose for themselves when they solve
        found[f"{name} mv"], found[f"{name} solve"] = F.mv(v), F.solve(v, regul=0.1)
        found[f"{name} stored"] = torch.cat([tensor.flatten() for tensor in F.tensors().values()])
    return found


def products(loader: Any, **options: Any) -> dict[str, Tensor]:
    """What matrices that store nothing give."""
    F = FIM(model(), loader, "implicit", **options)
    v = torch.linspace(-1, 2, F.size(0), dtype=torch.float64, device=device()).expand(2, -1)
    one = vector(F, v[0])
    found = {"mv": F.mv(v), "form": F.vTMv(one), "trace": F.trace(), "diagonal": F.get_diag()}
    found["solve"] = F.solve(v, regul=0.1)
    found["blocks"] = torch.block_diag(*F.convert("blockdiag").data.values())
    found["n_examples"] = torch.tensor(F.n_examples, dtype=torch.float64)
    for choice in ("implicit", "dense", "blockdiag"):
        H = Hessian(model(), loader, choice, loss=cross_entropy, **options)
        found[f"Hessian {choice}"] = H.mv(v)
    for choice in ("implicit", "dense"):
        J = Jacobian(model(), loader, choice, **options)
        u = outputs_like(J.size()[:2])
        found[f"J {choice}"], found[f"J^T {choice}"] = (J @ one).vector_repr, (J.T @ u).get_flat_representation()
        found[f"J dense from {choice}"] = J.get_dense_tensor()
        found[f"K of {choice}"] = (J @ J.T).mv(u).vector_repr
        found[f"F of {choice}"] = (J.T @ J / J.size()[1]).mv(v)
    return found


def kernels(loader: Any, other: Any, **options: Any) -> dict[str, Tensor]:
    """Kernels of one and of two loaders."""
    found = {}
    for choice, budget in (("dense", None), ("dense", 700), ("blockdiag", None), ("trace", None), ("implicit", None)):
        K = GramMatrix(network(), loader, choice, memory_budget=budget, **options)
        found[f"{choice} {budget}"] = K.get_dense_tensor()
    found["product"], found["norm"] = K.mv(outputs_like(K.size()[:2])).vector_repr, K.norm()
    found["trace"], found["centred trace"] = K.trace(), K.centered().trace()
    for choice in ("dense", "trace", "implicit"):
        cross = GramMatrix(network(), loader, choice, loader2=other, **options)
        found[f"cross {choice}"] = cross.get_dense_tensor()
    found["cross product"] = cross.mv(outputs_like(cross.size()[2:])).vector_repr
    return found


def network() -> nn.Module:
    """Layers of many structures: a table, positions, a normalisation, a layer that is called twice, a generic one."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(4)
        return Network().double().to(device())


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.norm = nn.LayerNorm(4)
        self.twice = nn.Linear(4, 4)
        self.head = nn.Bilinear(4, 4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(inputs + self.table((inputs > 0).long().sum(1) % 3))
        hidden = torch.tanh(self.twice(torch.tanh(self.twice(hidden))))
        outputs: Tensor = self.head(
            hidden, torch.tanh(nn.functional.linear(hidden, self.table.weight) @ self.table.weight)
        )
        return outputs


def vector(matrix: Any, v: Tensor) -> PVector:
    return PVector(matrix.layer_collection, vector_repr=v.to(device()))


def outputs_like(size: Any) -> FVector:
    c, n = size
    return FVector(torch.linspace(-2, 1, c * n, dtype=torch.float64, device=device()).view(c, n))


def other(loader: Any) -> Any:
    """Other examples, one batch less."""
    return [(x + 1, y) for x, y in loader[:-1]]


def everything() -> dict[str, Any]:
    """All that the processes compute together."""
    results: dict[str, Any] = {**products(mine(), distributed=True)}
    results |= kernels(mine(), other(mine()), distributed=True)
    results |= entries(matrices(mine(), distributed=True))
    results |= branches(one_reaches(mine(), dist.get_rank()), distributed=True)
    return {name: tensor.cpu() for name, tensor in results.items()}


if __name__ == "__main__":
    from processes import main

    main({"everything": everything})
