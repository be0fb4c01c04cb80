"""What goes wrong among several processes, for test_distributed_faults.py: each function says what its process met."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from distributed_work import cross_entropy, data, mine, model, outputs_like, vector
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from nngeo import (
    FIM,
    Accumulator,
    EmpiricalFIM,
    FIM_MonteCarlo,
    GramMatrix,
    Hessian,
    Jacobian,
    JacobianBatch,
    LayerCollection,
    PMatKFAC,
    PVector,
    populate,
)
from nngeo_core.parallel.group import Group
from nngeo_core.sweep import checkpoint as checkpoints


def message(call: Callable[[], Any]) -> str:
    """What a call raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def one_differs(usual: Any, odd: Any) -> Any:
    """The odd value on process 1, else the usual one."""
    return odd if dist.get_rank() == 1 else usual


def broken() -> Iterator[Any]:
    """A loader whose file is lost on the way."""
    yield from mine()
    raise OSError("the disk is gone")


def disagreements() -> dict[str, str]:
    """Calls that one of the processes makes in another way, one after the other: each ends on all of them."""
    together: dict[str, Any] = {"loader": mine(), "representation": "diag", "distributed": True}

    def fim(**changes: Any) -> Callable[[], Any]:
        return lambda: FIM(**{"model": model(), **together, **changes})

    changed = model()
    with torch.no_grad():
        changed[0].weight[0, 0] += one_differs(0, 1e-9)
    dropout = nn.Sequential(model(), nn.Dropout(0.5)).train(one_differs(False, True))
    x, y = data()
    wide = [(torch.ones(2, 5, dtype=torch.float64), y[:2])]
    sampled = DataLoader(TensorDataset(x, y), 3, sampler=DistributedSampler(TensorDataset(x, y)))
    F = FIM(model(), mine(), "implicit", distributed=True)
    v = torch.ones(F.size(0), dtype=torch.float64) * one_differs(1, 2)
    calls = {
        "parameters": fim(model=changed),
        "dtype": fim(model=one_differs(model(), model().float())),
        "layers": fim(layer_collection=LayerCollection.from_model(model(), only=[one_differs("*", "0")])),
        "representation": fim(representation=one_differs("diag", "dense")),
        "stored": fim(representation=one_differs("diag", "implicit")),
        "likelihood": fim(variant=one_differs("classif_logits", "regression")),
        "verb": one_differs(fim(), lambda: GramMatrix(model(), mine(), distributed=True)),
        "Hessian": one_differs(fim(), lambda: Hessian(model(), mine(), "dense", loss=cross_entropy, distributed=True)),
        "unknown": fim(representation=one_differs("diag", "no such")),
        "bad batch": fim(loader=one_differs(mine(), wide)),
        "bad batch of a kernel": lambda: GramMatrix(model(), one_differs(mine(), wide), distributed=True),
        "bad batch of a product": lambda: FIM(model(), one_differs(mine(), wide), "implicit", distributed=True).trace(),
        "decay": lambda: FIM(model(), **together).update(mine(), one_differs(0.5, 0.25)),
        "broken loader": lambda: GramMatrix(model(), one_differs(mine(), broken()), "implicit", distributed=True),
        "broken loader of a map": lambda: Jacobian(model(), one_differs(mine(), broken()), "dense", distributed=True),
        "dropout": fim(model=dropout),
        "padding": fim(loader=sampled),
        "vector": lambda: F.mv(vector(F, v)),
        "operation": one_differs(lambda: F.mv(vector(F, v)), lambda: F.trace()),
        "no examples": fim(loader=[]),
        "nothing": fim(),
    }
    return {name: message(call) for name, call in calls.items()}


def draws() -> dict[str, Any]:
    """The rows of Monte Carlo estimates where all processes have the same two examples."""
    batch = tuple(part[:2] for part in data())

    def rows(seed: int | None, **options: Any) -> tuple[Tensor, int]:
        source = None if seed is None else torch.Generator().manual_seed(seed)
        F = FIM_MonteCarlo(model(), batch, "lowrank", generator=source, **options)
        return F.data, F.generator.likelihood.seed

    found = {f"seed {seed}": rows(seed, distributed=True)[0] for seed in (1, 2)}
    again, seed = rows(1, distributed=True)
    F = FIM(
        model(),
        batch,
        "implicit",
        variant=FIM_MonteCarlo(model(), batch, "diag").generator.likelihood,
        distributed=True,
    )
    return found | {
        "again": again,
        "alone": rows(1)[0],
        "seeds": [seed, rows(None, distributed=True)[1]],
        "trace": F.trace(),
    }


def wrapped() -> dict[str, Any]:
    """A model inside DistributedDataParallel, before and after a training step, and one inside FSDP."""
    from torch.distributed.fsdp import fully_shard

    inside = nn.Sequential(model(), nn.BatchNorm1d(3).double()).eval()
    parallel, (x, y) = DistributedDataParallel(inside), data()
    before, loader = FIM(inside, mine(), "blockdiag", distributed=True).get_dense_tensor(), mine()
    F = FIM(parallel, loader, "blockdiag", distributed=True)
    cross_entropy(parallel(x), y).sum().backward()
    gradient = PVector.from_model_grad(parallel).get_flat_representation()
    after = FIM(parallel, loader, "blockdiag", distributed=True).get_dense_tensor()
    untouched = PVector.from_model_grad(parallel).get_flat_representation()
    return {
        "the same": [
            torch.equal(before, F.get_dense_tensor()),
            torch.equal(before, after),
            torch.equal(gradient, untouched),
        ],
        "layers": list(LayerCollection.from_model(parallel)),
        "function": message(lambda: FIM(parallel, loader, "diag", function=lambda x, _: parallel(x), distributed=True)),
        "FSDP": message(lambda: FIM(fully_shard(model()), loader, "diag", distributed=True)),
        "FSDP, with a collection": [
            message(lambda: LayerCollection.from_model(model()).named_parameters(fully_shard(model()))),
            message(lambda: PVector.from_model(fully_shard(model()), LayerCollection.from_model(model()))),
            message(lambda: PVector.from_model_grad(fully_shard(model()), LayerCollection.from_model(model()))),
        ],
    }


class Largest(Accumulator):
    """A third party's: the largest square of each parameter's derivatives, which no sum puts together."""

    def accumulate(self, batch: JacobianBatch) -> None:
        sizes = {layer_id: layer.numel() for layer_id, layer in self.layer_collection.items()}
        found = batch.to_dense(sizes).square().amax((0, 1))
        self.sums["largest"] = torch.maximum(self.sums["largest"], found) if self.sums else found

    def merge(self, other: Accumulator) -> None:
        self.n_examples += other.n_examples
        for name, value in other.sums.items():
            self.sums[name] = torch.maximum(self.sums[name], value) if self.sums else value.clone()

    def finalize(self) -> Tensor:
        return self.sums["largest"]


def third_party() -> tuple[Tensor, int]:
    """Sums that only know how to merge."""
    generator = FIM(model(), mine(), "diag", distributed=True).generator
    sums = Largest(generator.layer_collection)
    populate(generator, mine(), [sums])
    return sums.finalize(), sums.n_examples


def traffic() -> dict[str, dict[str, int]]:
    """The bytes that this process exchanged for each operation."""
    found = {}
    for choice in ("dense", "blockdiag", "diag", "quasidiag", "kfac", "ekfac", "lowrank", "implicit"):
        F = FIM(model(), mine(), choice, distributed=True)
        group: Group = F.generator.group
        if choice == "implicit":
            group.traffic.clear()
            F.mv(vector(F, torch.ones(F.size(0), dtype=torch.float64)))
        found[choice] = dict(group.traffic)
        if isinstance(F, PMatKFAC):
            group.traffic.clear()
            F.decompose()
            found["kfac, decomposed"] = dict(group.traffic)
    F = EmpiricalFIM(model(), mine(), "diag", variant="classif_logits", centred=True, distributed=True)
    K = GramMatrix(model(), mine(), distributed=True)
    found |= {"centred": dict(F.generator.group.traffic), "Gram": dict(K.generator.group.traffic)}
    for choice in ("blockdiag", "trace"):
        found[f"Gram {choice}"] = dict(GramMatrix(model(), mine(), choice, distributed=True).generator.group.traffic)
    found["Jacobian"] = dict(Jacobian(model(), mine(), "dense", distributed=True).generator.group.traffic)
    lazy = GramMatrix(model(), mine(), "implicit", distributed=True)
    found["implicit kernel"] = _of_product(lazy.data[0].generator.group, lambda: lazy @ outputs_like((3, 11)))
    H = Hessian(model(), mine(), "implicit", loss=cross_entropy, distributed=True)
    v = torch.ones(1, H.size(0), dtype=torch.float64)
    return found | {"Hessian": _of_product(H.generator.group, lambda: H.mv(v))}


def _of_product(group: Group, product: Callable[[], Any]) -> dict[str, int]:
    """What a product exchanges, the first one aside."""
    product()
    group.traffic.clear()
    product()
    return dict(group.traffic)


def some() -> dict[str, Any]:
    """Two processes of three compute without the other one; and one has nobody to compute with."""
    pair, single = dist.new_group([0, 2]), [dist.new_group([rank]) for rank in range(3)][dist.get_rank()]
    alone = FIM(model(), data(), ["dense", "ekfac", "implicit"], process_group=single)
    v = vector(alone[2], torch.ones(27, dtype=torch.float64))
    found: dict[str, Any] = {"alone": alone[0].data, "product": alone[2].mv(v).get_flat_representation()}
    F = FIM(model(), data(), "dense")
    if dist.get_rank() == 1:
        found["outside"] = message(lambda: FIM(model(), data(), "dense", process_group=pair))
    else:
        found["pair"] = FIM(model(), mine(), "dense", process_group=pair).data
        F.update(mine(), 0.5, process_group=pair)
        found["update"] = [F.data, F.n_examples]
        odd = FIM(model(), data(), "dense") * (1 + dist.get_rank())
        found["different"] = message(lambda: odd.update(mine(), 0.5, process_group=pair))
        found["after it"] = odd.generator.group
        F.update(data(), 0.5, distributed=False)
        found["local"] = F.n_examples
    return found


def sound() -> dict[str, Any]:
    """All of the above, in one start of the processes."""
    return {work.__name__: work() for work in (disagreements, draws, wrapped, third_party, traffic, some)}


class Announced:
    """The batches of this process, one example each; it dies, hangs or fails before one of those of process 1."""

    def __init__(self, end: str, number: int) -> None:
        self.end, self.number, self.read = end, number, 0

    def __iter__(self) -> Iterator[Any]:
        x, y = data()
        for example in range(dist.get_rank(), len(x), dist.get_world_size()):
            if dist.get_rank() == 1 and self.read == self.number:
                stop(self.end)
            self.read += 1
            yield x[example : example + 1], y[example : example + 1]


def stop(end: str) -> None:
    if end == "dies":
        os._exit(1)
    if end == "hangs":
        time.sleep(14)
    if end == "fails":
        raise OSError("the disk is gone")


def faults(folder: str, end: str, number: str) -> tuple[str, float]:
    """What a process meets, and after how many seconds, when process 1 comes to an end."""
    started = time.monotonic()
    loader = Announced(end, int(number))
    met = message(lambda: FIM(model(), loader, "ekfac", distributed=True, checkpoint=folder, checkpoint_every=1))
    return met, time.monotonic() - started


def between_passes(folder: str, replaced: str) -> str:
    """Process 1 dies where the sums of the first pass are put together: before or after it renamed its file."""

    def replace(source: Path, target: Path) -> None:
        if dist.get_rank() == 1 and ".next." in str(source) and replaced == "before":
            os._exit(1)
        real(source, target)
        if dist.get_rank() == 1 and ".next." in str(source):
            os._exit(1)

    real, checkpoints.os = os.replace, Patched(replace)  # type: ignore[attr-defined]
    return message(lambda: FIM(model(), mine(), "ekfac", distributed=True, checkpoint=folder, checkpoint_every=1))


def at_the_end(folder: str) -> str:
    """Process 1 dies before it removes its file."""

    def remove(self: checkpoints.Checkpoint) -> None:
        if dist.get_rank() == 1 and self.path.exists():
            os._exit(1)
        real(self)

    real, checkpoints.Checkpoint.remove = checkpoints.Checkpoint.remove, remove  # type: ignore[method-assign]
    return message(lambda: FIM(model(), mine(), "ekfac", distributed=True, checkpoint=folder, checkpoint_every=1))


class Patched:
    """The module os, with another `replace`."""

    def __init__(self, replace: Callable[..., Any]) -> None:
        self.replace = replace

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def resumed(folder: str, shards: str) -> tuple[Tensor, int, list[str]]:
    """The matrix, how many examples this process added to sums in this run, and what is left in the folder."""
    added, update = [], Accumulator.update

    def counted(self: Accumulator, batch: JacobianBatch) -> None:
        added.append(batch.n_examples)
        update(self, batch)

    Accumulator.update = counted  # type: ignore[method-assign]
    loader = mine() if shards == "mine" else Announced("no end", -1)
    F = FIM(model(), loader, "ekfac", distributed=True, checkpoint=folder, checkpoint_every=1)
    dist.barrier()
    return F.get_dense_tensor(), sum(added), os.listdir(folder)


if __name__ == "__main__":
    from processes import main

    works = (sound, faults, between_passes, at_the_end, resumed)
    main({work.__name__: work for work in works})
