"""nngeo's operations."""

from typing import Any

import torch
from torch import Tensor

import nngeo
from benchmarks.peers.problem import DAMPING, ByName, NotAvailable, Operation, Problem, weights
from nngeo import FIM, ClassifLogits, LayerCollection, PVector
from nngeo_core.plugins import registry


class Ours:
    """What nngeo is asked for, and its results by parameter name."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.layers = LayerCollection.from_model(problem.model)
        self.vector = self.as_vector(problem.v, self.layers)

    def as_vector(self, tensors: ByName, layers: LayerCollection) -> PVector:
        """A vector about some layers, from parameter-shaped tensors."""
        names = [name for name, _ in layers.named_parameters(self.problem.model)]
        return PVector(layers, vector_repr=torch.cat([tensors[name].flatten() for name in names]))

    def by_name(self, flat: Tensor, layers: LayerCollection) -> ByName:
        """The parameter-shaped parts of a flat vector."""
        named = layers.named_parameters(self.problem.model)
        parts = flat.split([p.numel() for _, p in named])
        return {name: part.view(p.shape) for (name, p), part in zip(named, parts, strict=True)}

    def build(self, representation: str, layers: LayerCollection | None = None) -> Any:
        """A matrix over all the data."""
        if representation not in registry.names("representations"):
            raise NotAvailable("not in this version")
        problem = self.problem
        return FIM(problem.model, problem.batches, representation, layer_collection=layers or self.layers)

    def operation(self, name: str) -> Operation:
        """The operation of that name.

        Raises:
            NotAvailable: This version does not have it.
        """
        if name in ("product", "quadratic form", "trace"):
            return self.matrix_free(name)
        if name in ("diag", "quasidiag", "blockdiag", "dense"):
            return self.stored(name)
        if name in ("kfac", "ekfac"):
            return self.factored(name)
        if name == "gram":
            return self.gram()
        return self.solve(*name.split(" solve, "))

    def matrix_free(self, name: str) -> Operation:
        """Products with F, from the examples each time."""
        problem = self.problem
        if name == "product":
            generator = registry.generator("hooks")(problem.model, ClassifLogits(), layer_collection=self.layers)
            return Operation(
                lambda: generator.product(self.vector, problem.batches),
                lambda found: self.by_name(found.get_flat_representation(), self.layers),
            )
        matrix = self.build("implicit")
        if name == "trace":
            return Operation(matrix.trace, lambda found: found)
        return Operation(lambda: matrix.vTMv(self.vector), lambda found: found)

    def stored(self, name: str) -> Operation:
        """A build; its numbers are its diagonal, or a product with it."""

        def numbers(matrix: Any) -> ByName:
            flat = matrix.get_diag() if name == "diag" else matrix.mv(self.vector).get_flat_representation()
            return self.by_name(flat, self.layers)

        return Operation(lambda: self.build(name), numbers)

    def factored(self, name: str) -> Operation:
        """A build of Kronecker factors of the layers that have them; its numbers are a product with weights."""
        layers = self.factored_layers()
        v = self.as_vector(self.problem.weights_only(), layers)
        return Operation(
            lambda: self.build(name, layers),
            lambda matrix: weights(self.by_name(matrix.mv(v).get_flat_representation(), layers)),
        )

    def factored_layers(self) -> LayerCollection:
        """The layers that the factored representations are about."""
        return LayerCollection.from_model(self.problem.model, only=list(self.problem.factored().values()))

    def gram(self) -> Operation:
        """The neural tangent kernel of the logits."""
        if not hasattr(nngeo, "GramMatrix"):
            raise NotAvailable("not in this version")
        return Operation(
            lambda: nngeo.GramMatrix(self.problem.model, self.problem.batches),
            lambda found: found.get_dense_tensor(),
        )

    def solve(self, representation: str, when: str) -> Operation:
        """(M + r I)^-1 v, from nothing or from a matrix that has solved before."""
        layers = self.factored_layers() if representation == "kfac" else self.layers
        v = self.as_vector(self.problem.v, layers)
        built = self.build(representation, layers)
        built.solve(v, DAMPING)
        fresh = type(built)
        copies: list[Any] = [built]

        def prepare() -> None:
            copies[0] = fresh(data=built.data, layer_collection=layers)

        return Operation(
            lambda: copies[0].solve(v, DAMPING),
            lambda found: self.by_name(found.get_flat_representation(), layers),
            prepare if when == "first" else None,
        )
