"""BackPACK 1.7.1's operations."""

from typing import Any

import torch
from backpack import backpack, extend
from backpack.extensions import KFLR, DiagGGNExact
from backpack.hessianfree.ggnvp import ggn_vector_product
from torch import Tensor, nn

from benchmarks.peers.problem import ByName, NotAvailable, Operation, Problem, weights


class BackPACK:
    """What BackPACK is asked for: batch by batch, whose averages are averaged here."""

    def __init__(self, problem: Problem) -> None:
        if not isinstance(problem.model, nn.Sequential):
            raise NotAvailable("needs a model that its converter knows")
        self.problem = problem
        if any(type(m).__name__ == "ResidualBlock" for m in problem.model):
            self.model = extend(problem.model, use_converter=True).eval()
        else:
            self.model = extend(problem.model)
        self.loss = extend(nn.CrossEntropyLoss())
        self.names = list(problem.v)

    def swept(self, extension: Any, saved: str) -> list[Any]:
        """What an extension saves on each parameter, averaged over the data."""
        totals: list[Any] = [None] * len(self.names)
        n = len(self.problem.inputs)
        for inputs, targets in self.problem.batches:
            loss = self.loss(self.model(inputs), targets)
            with backpack(extension):
                loss.backward()
            for i, p in enumerate(self.model.parameters()):
                found, share = getattr(p, saved), len(inputs) / n
                parts = [part * share for part in found] if isinstance(found, list) else found * share
                both = isinstance(parts, list)
                if totals[i] is None:
                    totals[i] = parts
                else:
                    totals[i] = [a + b for a, b in zip(totals[i], parts, strict=True)] if both else totals[i] + parts
                delattr(p, saved)
            self.model.zero_grad()
        return totals

    def operation(self, name: str) -> Operation:
        """The operation of that name.

        Raises:
            NotAvailable: BackPACK has no such operation.
        """
        if name == "product":
            return Operation(self.product, lambda found: dict(zip(self.names, found, strict=True)))
        if name == "quadratic form":
            return Operation(self.quadratic_form, lambda found: found)
        if name == "trace":
            return Operation(lambda: sum(t.sum() for t in self.diagonal()), lambda found: found.detach())
        if name == "diag":
            return Operation(self.diagonal, lambda found: dict(zip(self.names, found, strict=True)))
        if name == "kfac":
            return Operation(lambda: self.swept(KFLR(), "kflr"), self.applied)
        raise NotAvailable("no such quantity")

    def diagonal(self) -> list[Tensor]:
        """The exact diagonal."""
        return self.swept(DiagGGNExact(), "diag_ggn_exact")

    def product(self) -> list[Tensor]:
        """F v by two backward passes for J v and one for the rest."""
        v, n = list(self.problem.v.values()), len(self.problem.inputs)
        total = [torch.zeros_like(t) for t in v]
        for inputs, targets in self.problem.batches:
            outputs = self.model(inputs)
            found = ggn_vector_product(self.loss(outputs, targets), outputs, self.model, v)
            for t, part in zip(total, found, strict=True):
                t.add_(part, alpha=len(inputs) / n)
        return total

    def quadratic_form(self) -> Tensor:
        """From the product."""
        return torch.stack([(a * b).sum() for a, b in zip(self.problem.v.values(), self.product(), strict=True)]).sum()

    def applied(self, factors: list[Any]) -> ByName:
        """A product with weights: each has the factors G and A."""
        found = {}
        for name, parts in zip(self.names, factors, strict=True):
            if len(parts) == 2:
                v = self.problem.v[name]
                found[name] = (parts[0] @ v.flatten(1) @ parts[1]).view(v.shape).detach()
        return weights(found)
