"""curvlinops 3.0.1's operations."""

from typing import Any

import torch
from curvlinops import EKFACLinearOperator, FisherType, GGNLinearOperator, KFACInverseLinearOperator, KFACLinearOperator
from torch import Tensor, nn

from benchmarks.peers.problem import DAMPING, ByName, NotAvailable, Operation, Problem, weights

KINDS = {"kfac": KFACLinearOperator, "ekfac": EKFACLinearOperator}


class Curvlinops:
    """What curvlinops is asked for: operators, whose determinism check and count of the data are off when timed."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.named = dict(problem.model.named_parameters())
        self.options = {"num_data": len(problem.inputs), "check_deterministic": False}

    def by_name(self, tensors: list[Tensor], names: list[str]) -> ByName:
        """The parts of a result, by parameter name."""
        return {name: t.detach() for name, t in zip(names, tensors, strict=True)}

    def ggn(self, blocks: bool = False) -> GGNLinearOperator:
        """The Gauss-Newton operator of all parameters."""
        return GGNLinearOperator(
            self.problem.model, nn.CrossEntropyLoss(), list(self.named.values()), self.problem.batches, **self.options
        )

    def factored(self, name: str, names: list[str]) -> Any:
        """Kronecker factors, computed."""
        operator = KINDS[name](
            self.problem.model,
            nn.CrossEntropyLoss(),
            [self.named[name] for name in names],
            self.problem.batches,
            fisher_type=FisherType.TYPE2,
            separate_weight_and_bias=False,
            num_per_example_loss_terms=1,
            **self.options,
        )
        operator.compute_kronecker_factors()
        if name == "ekfac":
            operator._maybe_compute_ekfac()
        return operator

    def operation(self, name: str) -> Operation:
        """The operation of that name.

        Raises:
            NotAvailable: curvlinops has no such operation, or not for this model.
        """
        names = list(self.named)
        v = list(self.problem.v.values())
        if name == "product":
            operator = self.ggn()
            return Operation(lambda: operator @ v, lambda found: self.by_name(found, names))
        if name == "quadratic form":
            operator = self.ggn()
            return Operation(
                lambda: sum((a * b).sum() for a, b in zip(v, operator @ v, strict=True)), lambda found: found.detach()
            )
        if name == "dense":
            operator = self.ggn()
            size = sum(p.numel() for p in self.named.values())
            return Operation(lambda: operator @ torch.eye(size), self.applied)
        if name not in ("kfac", "ekfac", "kfac solve, first", "kfac solve, again"):
            raise NotAvailable("only estimates")
        return self.kronecker(name)

    def applied(self, dense: Tensor) -> ByName:
        """A product with a dense matrix."""
        flat = dense.detach() @ torch.cat([t.flatten() for t in self.problem.v.values()])
        parts = flat.split([t.numel() for t in self.problem.v.values()])
        return {name: part.view(t.shape) for (name, t), part in zip(self.problem.v.items(), parts, strict=True)}

    def kronecker(self, name: str) -> Operation:
        """Builds of Kronecker factors, and solutions with the exact damping."""
        modules = self.problem.factored().values()
        if not all(isinstance(module, (nn.Linear, nn.Conv2d)) for module in modules):
            raise NotAvailable("knows nn.Linear and nn.Conv2d only")
        v = self.problem.weights_only()
        names = list(v)
        if name in KINDS:
            return Operation(
                lambda: self.factored(name, names),
                lambda operator: weights(self.by_name(operator @ list(v.values()), names)),
            )
        operator = self.factored("kfac", names)
        right = [self.problem.v[name] for name in names]
        kept = [KFACInverseLinearOperator(operator, damping=DAMPING, use_exact_damping=True)]
        kept[0] @ right

        def prepare() -> None:
            kept[0] = KFACInverseLinearOperator(operator, damping=DAMPING, use_exact_damping=True)

        return Operation(
            lambda: kept[0] @ right,
            lambda found: self.by_name(found, names),
            prepare if name.endswith("first") else None,
        )
