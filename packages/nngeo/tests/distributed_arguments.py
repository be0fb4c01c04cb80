"""Calls that one of several processes makes with an argument that cannot be, for test_distributed_arguments.py."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from distributed_faults import message, one_differs
from distributed_work import cross_entropy, data, mine, model, outputs_like, vector
from torch import Tensor, nn

from nngeo import FIM, GGN, EmpiricalFIM, FIM_MonteCarlo, GramMatrix, Hessian, Jacobian, PMatEKFAC

TOGETHER: dict[str, Any] = {"distributed": True}
REPRESENTATIONS = ("dense", "blockdiag", "diag", "quasidiag", "kfac", "ekfac", "lowrank", "implicit", "auto")


def breaks() -> Iterator[Any]:
    """A loader whose file is lost before the second batch of process 1."""
    for number, batch in enumerate(some()):
        if number == 1:
            one_differs(lambda: None, lost)()
        yield batch


def lost() -> None:
    raise OSError("the disk is gone")


class Breaks:
    """The same, to be read more than once."""

    def __iter__(self) -> Iterator[Any]:
        return breaks()


def some() -> list[tuple[Tensor, Tensor]]:
    """Two batches on each process."""
    source = torch.Generator().manual_seed(dist.get_rank())
    x = torch.randn(4, 4, generator=source, dtype=torch.float64)
    return [(x[:2], torch.zeros(2, dtype=torch.long)), (x[2:], torch.ones(2, dtype=torch.long))]


def verbs(loader: Any) -> dict[str, Callable[[], Any]]:
    """Every verb of a loader."""
    calls: dict[str, Callable[[], Any]] = {
        f"FIM {choice}": lambda choice=choice: _used(FIM(model(), loader, choice, **TOGETHER))  # type: ignore[misc]
        for choice in REPRESENTATIONS
    }
    for choice in ("implicit", "dense", "blockdiag"):
        calls[f"Hessian {choice}"] = lambda choice=choice: _used(  # type: ignore[misc]
            Hessian(model(), loader, choice, loss=cross_entropy, **TOGETHER)
        )
    for choice in ("dense", "implicit", "blockdiag", "trace"):
        calls[f"GramMatrix {choice}"] = lambda choice=choice: GramMatrix(model(), loader, choice, **TOGETHER)  # type: ignore[misc]
    for choice in ("dense", "implicit"):
        calls[f"Jacobian {choice}"] = lambda choice=choice: Jacobian(model(), loader, choice, **TOGETHER)  # type: ignore[misc]
    return calls | {
        "list": lambda: FIM(model(), loader, ["diag", "implicit", "kfac"], **TOGETHER),
        "cross kernel": lambda: GramMatrix(model(), some(), loader2=loader, **TOGETHER),
        "EmpiricalFIM": lambda: EmpiricalFIM(model(), loader, "diag", variant="classif_logits", **TOGETHER),
        "GGN": lambda: GGN(model(), loader, "diag", loss=cross_entropy, **TOGETHER),
        "FIM_MonteCarlo": lambda: FIM_MonteCarlo(model(), loader, "diag", **TOGETHER),
        "update": lambda: FIM(model(), some(), "kfac", **TOGETHER).update(loader, 0.5),
        "update_diag": lambda: _ekfac().update_diag(loader),
    }


def _used(F: Any) -> Any:
    """The matrix, after a product."""
    F.mv(torch.ones(1, F.size(0), dtype=torch.float64))
    return F


def _ekfac() -> PMatEKFAC:
    return FIM(model(), some(), PMatEKFAC, **TOGETHER)


def arguments() -> dict[str, Callable[[], Any]]:
    """One argument of process 1 that no process could have."""
    F = FIM(model(), mine(), "implicit", **TOGETHER)
    J = Jacobian(model(), mine(), **TOGETHER)
    K = GramMatrix(model(), mine(), "implicit", **TOGETHER)
    good, bad = (torch.ones(1, d, dtype=torch.float64) for d in (F.size(0), 5))
    c, n = J.size()[:2]
    u = outputs_like(one_differs((c, n), (c, n + 1)))
    short = one_differs(vector(F, good[0]), good)

    def fim(**changes: Any) -> Callable[[], Any]:
        return lambda: FIM(**{"model": model(), "loader": mine(), "representation": "diag", **TOGETHER, **changes})

    return {
        "model without shapes": fim(model=one_differs(model(), nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3)))),
        "no representations": fim(representation=one_differs(["diag"], [])),
        "variant": fim(variant=one_differs("classif_logits", "no such")),
        "memory_budget": fim(memory_budget=one_differs(None, -1)),
        "check": fim(check=one_differs("first-batch", "never")),
        "checkpoint_every": fim(checkpoint=one_differs(None, "sums"), checkpoint_every=one_differs(100, 0)),
        "checkpoint of nothing": fim(representation="implicit", checkpoint=one_differs(None, "sums")),
        "n_output": fim(loader=some(), n_output=one_differs(None, 4)),
        "iterator": fim(representation="implicit", loader=one_differs(mine(), iter(mine()))),
        "trials": lambda: FIM_MonteCarlo(model(), mine(), "diag", trials=one_differs(1, 0), **TOGETHER),
        "no loss": lambda: GGN(model(), mine(), "diag", loss=one_differs(cross_entropy, None), **TOGETHER),
        "loss": lambda: EmpiricalFIM(model(), mine(), "diag", loss=one_differs(cross_entropy, 1), **TOGETHER),
        "Hessian": lambda: Hessian(model(), mine(), one_differs("implicit", "kfac"), loss=cross_entropy, **TOGETHER),
        "Hessian's loss": lambda: Hessian(
            model(), mine(), "implicit", loss=one_differs(cross_entropy, None), **TOGETHER
        ),
        "kernel": lambda: GramMatrix(model(), mine(), one_differs("dense", "no such"), **TOGETHER),
        "buffer": lambda: GramMatrix(model(), mine(), out=one_differs(None, torch.empty(1)), **TOGETHER),
        "buffer of nothing": lambda: GramMatrix(
            model(), mine(), "implicit", out=one_differs(None, torch.empty(1)), **TOGETHER
        ),
        "method": lambda: GramMatrix(model(), some(), method=one_differs(None, "no such"), **TOGETHER),
        "map": lambda: Jacobian(model(), mine(), one_differs("dense", "no such"), **TOGETHER),
        "decay": lambda: FIM(model(), mine(), "diag", **TOGETHER).update(mine(), one_differs(0.5, 2)),
        "decay of other processes": lambda: FIM(model(), some(), "diag").update(mine(), one_differs(0, 2), **TOGETHER),
        "mv": lambda: F.mv(one_differs(good, bad)),
        "vTMv": lambda: F.vTMv(short),
        "mv of a sum": lambda: (0.5 * F + FIM(model(), mine(), "diag", **TOGETHER)).mv(one_differs(good, bad)),
        "solve": lambda: F.solve(good, regul=one_differs(0.1, -1)),
        "solve with K": lambda: K.solve(outputs_like((c, n)), regul=one_differs(0.1, -1)),
        "eigenvalues": lambda: F.eigendecomposition(one_differs(1, 0)),
        "eigenvalues of K": lambda: K.eigendecomposition(one_differs(1, 0)),
        "J v": lambda: J @ short,
        "J^T u": lambda: J.T @ u,
        "K u": lambda: K @ u,
    }


def outputs() -> dict[str, str]:
    """Processes whose function gives another number of outputs."""
    network = nn.Linear(4, 3, bias=False).double()
    with torch.no_grad():
        network.weight.copy_(torch.linspace(-1, 1, 12).view(3, 4))

    def function(x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = network(x)
        return torch.cat((found, found[:, :1]), 1) if dist.get_rank() == 1 else found

    def empty() -> Any:
        return [] if dist.get_rank() == 2 else some()

    calls: dict[str, Callable[[], Any]] = {
        f"FIM {choice}": lambda choice=choice: _used(  # type: ignore[misc]
            FIM(network, empty(), choice, variant="regression", function=function, **TOGETHER)
        )
        for choice in REPRESENTATIONS
    }
    for variant in ("classif_logits", "multilabel_logits", "poisson"):
        calls[variant] = lambda variant=variant: FIM(  # type: ignore[misc]
            network, empty(), "diag", variant=variant, function=function, **TOGETHER
        )
    calls["Hessian"] = lambda: Hessian(
        network, empty(), "dense", loss=lambda f, y: f.square().sum(1), function=function, **TOGETHER
    )
    for choice in ("dense", "implicit", "blockdiag", "trace"):
        calls[f"GramMatrix {choice}"] = lambda choice=choice: GramMatrix(  # type: ignore[misc]
            network, empty(), choice, function=function, **TOGETHER
        )
    for choice in ("dense", "implicit"):
        calls[f"Jacobian {choice}"] = lambda choice=choice: Jacobian(  # type: ignore[misc]
            network, empty(), choice, function=function, **TOGETHER
        )
    calls["update"] = lambda: _of_one(FIM(network, data(), "diag", variant="regression", function=function)).update(
        empty(), 0.5, **TOGETHER
    )
    return {name: message(call) for name, call in calls.items()}


def _of_one(F: Any) -> Any:
    """The matrix with the numbers of process 0."""
    dist.broadcast(F.data, 0)
    return F


def everything() -> dict[str, dict[str, str]]:
    """What each call raises; a sound one is in between, so that processes that are not in step are seen."""
    found = {}
    groups = {
        "no loader": verbs(one_differs(some(), None)),
        "broken loader": verbs(Breaks()),
        "arguments": arguments(),
    }
    for name, calls in groups.items():
        found[name] = {}
        for case, call in calls.items():
            found[name][case] = message(call)
            found[name][f"after {case}"] = message(lambda: FIM(model(), mine(), "diag", **TOGETHER))
    return found | {"outputs": outputs()}


if __name__ == "__main__":
    from processes import main

    main({"everything": everything})
