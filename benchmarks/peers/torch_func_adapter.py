"""The same operations written with plain `torch.func`, as its tutorials do."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from benchmarks.peers.problem import DAMPING, ByName, NotAvailable, Operation, Problem

LARGEST = 1 << 29
"""Bytes that the per-example Jacobians of a chunk may take."""


class TorchFunc:
    """Forward and reverse mode for products; `vmap(jacrev)` in chunks of examples for what needs Jacobians."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.parameters = {name: p.detach() for name, p in problem.model.named_parameters()}
        self.buffers = dict(problem.model.named_buffers())
        self.numel = sum(p.numel() for p in self.parameters.values())

    def outputs(self, parameters: ByName, inputs: Tensor) -> Tensor:
        """Logits as a function of the parameters."""
        found: Tensor = functional_call(self.problem.model, (parameters, self.buffers), (inputs,))
        return found

    def linearized(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each batch: inputs, softmax probabilities, and the change of the logits with the vector."""
        for inputs, _ in self.problem.batches:
            logits, change = jvp(lambda p, x=inputs: self.outputs(p, x), (self.parameters,), (self.problem.v,))
            yield inputs, logits.softmax(1), change

    def product(self) -> ByName:
        """J^T (L (J v)), averaged."""
        total = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        for inputs, p, change in self.linearized():
            metric = p * change - p * (p * change).sum(1, keepdim=True)
            _, pull_back = vjp(lambda q, x=inputs: self.outputs(q, x), self.parameters)
            for name, part in pull_back(metric)[0].items():
                total[name] += part / len(self.problem.inputs)
        return total

    def quadratic_form(self) -> Tensor:
        """(J v)^T L (J v), averaged."""
        parts = [(p * u.square()).sum() - (p * u).sum(1).square().sum() for _, p, u in self.linearized()]
        return torch.stack(parts).sum() / len(self.problem.inputs)

    def jacobians(self, metric: bool) -> Iterator[dict[str, Tensor]]:
        """Per-example Jacobians (n, c, ...), of the logits or of what gives the metric with its transpose."""

        def one(parameters: ByName, x: Tensor) -> Tensor:
            logits = self.outputs(parameters, x.unsqueeze(0)).squeeze(0)
            if not metric:
                return logits
            p = logits.detach().softmax(0)
            return p.sqrt() * (logits - (p * logits).sum())

        if 4 * self.numel * self.problem.outputs * len(self.problem.inputs) > 1 << 35:
            raise NotAvailable("the Jacobians take over 32 GiB in all")
        size = max(1, LARGEST // (4 * self.numel * self.problem.outputs))
        for inputs, _ in self.problem.batches:
            for chunk in inputs.split(size):
                yield vmap(jacrev(one), (None, 0))(self.parameters, chunk)

    def rows(self, metric: bool) -> Iterator[Tensor]:
        """The same as matrices (n c, d)."""
        for jacobian in self.jacobians(metric):
            yield torch.cat([j.flatten(2) for j in jacobian.values()], 2).flatten(0, 1)

    def diagonal(self) -> ByName:
        """Squares, summed over outputs and averaged over examples."""
        total = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        for jacobian in self.jacobians(metric=True):
            for name, j in jacobian.items():
                total[name] += j.square().sum((0, 1)) / len(self.problem.inputs)
        return total

    def dense(self) -> Tensor:
        """J^T J, averaged."""
        total = torch.zeros(self.numel, self.numel)
        for rows in self.rows(metric=True):
            total.addmm_(rows.T, rows, alpha=1 / len(self.problem.inputs))
        return total

    def gram(self) -> Tensor:
        """J J^T of all examples, (c, n, c, n)."""
        c, n = self.problem.outputs, len(self.problem.inputs)
        if 4 * c * n * self.numel > 1 << 31:
            raise NotAvailable("the Jacobian of all examples takes over 2 GiB")
        rows = torch.cat(list(self.rows(metric=False)))
        return (rows @ rows.T).view(n, c, n, c).permute(1, 0, 3, 2)

    def operation(self, name: str) -> Operation:
        """The operation of that name.

        Raises:
            NotAvailable: It is no few lines of torch.func.
        """
        if name == "trace":
            return Operation(lambda: sum(t.sum() for t in self.diagonal().values()), lambda found: found)
        if name == "dense":
            return Operation(self.dense, self.applied)
        if name == "dense solve, again" or name == "dense solve, first":
            dense, v = self.dense(), torch.cat([t.flatten() for t in self.problem.v.values()])
            damped = dense + DAMPING * torch.eye(self.numel)
            return Operation(lambda: torch.linalg.solve(damped, v), self.split)
        plain = {
            "product": self.product,
            "quadratic form": self.quadratic_form,
            "diag": self.diagonal,
            "gram": self.gram,
        }
        if name in plain:
            return Operation(plain[name], lambda found: found)
        raise NotAvailable("no few lines")

    def applied(self, dense: Tensor) -> ByName:
        """A product with a dense matrix."""
        return self.split(dense @ torch.cat([t.flatten() for t in self.problem.v.values()]))

    def split(self, flat: Tensor) -> ByName:
        """The parameter-shaped parts of a flat vector."""
        parts = flat.split([p.numel() for p in self.parameters.values()])
        return {name: part.view(p.shape) for (name, p), part in zip(self.parameters.items(), parts, strict=True)}
