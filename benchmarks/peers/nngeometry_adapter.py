"""NNGeometry 0.4's operations."""

from collections import OrderedDict
from typing import Any

import torch
from nngeometry.gram import GramMatrix
from nngeometry.layercollection import LayerCollection
from nngeometry.metrics import FIM
from nngeometry.object import PMatBlockDiag, PMatDense, PMatDiag, PMatEKFAC, PMatImplicit, PMatKFAC, PMatQuasiDiag
from nngeometry.object.vector import PVector
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.problem import DAMPING, ByName, NotAvailable, Operation, Problem, weights

KINDS = {
    **{"diag": PMatDiag, "quasidiag": PMatQuasiDiag, "kfac": PMatKFAC, "ekfac": PMatEKFAC},
    **{"dense": PMatDense, "blockdiag": PMatBlockDiag},
}


class Sliced(Dataset):  # type: ignore[type-arg]
    """Tensors whose batches are slices, so that reading them costs nothing."""

    def __init__(self, problem: Problem) -> None:
        self.inputs, self.targets = problem.inputs, problem.targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitems__(self, places: list[int]) -> tuple[Tensor, Tensor]:
        chosen = slice(places[0], places[-1] + 1)
        return self.inputs[chosen], self.targets[chosen]


class NNGeometry:
    """What NNGeometry is asked for, and its results by parameter name."""

    def __init__(self, problem: Problem) -> None:
        if not problem.inputs.is_floating_point():
            raise NotAvailable("needs inputs that can be differentiated")
        self.problem = problem
        self.loader = DataLoader(Sliced(problem), batch_size=problem.batch, collate_fn=lambda batch: batch)
        try:
            self.layers = LayerCollection.from_model(problem.model)
        except Exception as error:
            raise NotAvailable(str(error).splitlines()[0][:60]) from error
        covered = sum(layer.numel() for layer in self.layers.layers.values())
        if covered != sum(p.numel() for p in problem.model.parameters()):
            raise NotAvailable("leaves out parameters of parent modules")

    def factored_layers(self) -> LayerCollection:
        """The layers that the factored representations are about."""
        layers = LayerCollection()
        for path in self.problem.factored():
            layers.add_layer(path, self.layers.layers[path])
        return layers

    def names(self, layers: LayerCollection) -> "OrderedDict[str, list[str]]":
        """The parameter names of each layer, in its order."""
        kept = OrderedDict()
        for path, layer in layers.layers.items():
            kept[path] = [f"{path}.weight", f"{path}.bias"][: 1 if getattr(layer, "bias", None) is None else 2]
        return kept

    def as_vector(self, tensors: ByName, layers: LayerCollection) -> PVector:
        """A vector about some layers, from parameter-shaped tensors."""
        flat = [tensors[name].flatten() for names in self.names(layers).values() for name in names]
        return PVector(layers, vector_repr=torch.cat(flat))

    def by_name(self, vector: Any, layers: LayerCollection) -> ByName:
        """The parameter-shaped parts of a vector, or of a flat tensor."""
        tensors = vector.to_dict() if isinstance(vector, PVector) else PVector(layers, vector_repr=vector).to_dict()
        names = self.names(layers)
        return {name: t.detach() for path in tensors for name, t in zip(names[path], tensors[path], strict=True)}

    def build(self, kind: type, layers: LayerCollection | None = None) -> Any:
        """A matrix over all the data."""
        matrix = FIM(self.problem.model, self.loader, kind, layer_collection=layers or self.layers)
        if kind is PMatEKFAC:
            matrix.update_diag(self.loader)
        return matrix

    def operation(self, name: str) -> Operation:
        """The operation of that name."""
        layers = self.factored_layers() if "kfac" in name else self.layers
        v = self.as_vector(self.problem.weights_only() if "kfac" in name else self.problem.v, layers)
        if name in ("product", "quadratic form", "trace"):
            matrix = self.build(PMatImplicit)
            if name == "product":
                return Operation(lambda: matrix.mv(v), lambda found: self.by_name(found, layers))
            return Operation(matrix.trace if name == "trace" else lambda: matrix.vTMv(v), lambda found: found.detach())
        if name == "gram":
            model = self.problem.model
            return Operation(lambda: GramMatrix(model, self.loader).data, lambda found: found.detach())
        if name in KINDS:
            return self.stored(name, layers, v)
        return self.solve(*name.split(" solve, "), layers)

    def stored(self, name: str, layers: LayerCollection, v: PVector) -> Operation:
        """A build; its numbers are its diagonal, or a product with it."""

        def numbers(matrix: Any) -> ByName:
            found = self.by_name(matrix.get_diag() if name == "diag" else matrix.mv(v), layers)
            return weights(found) if "kfac" in name else found

        return Operation(lambda: self.build(KINDS[name], layers), numbers)

    def solve(self, representation: str, when: str, layers: LayerCollection) -> Operation:
        """Its damped solution; KFAC's factorizes anew each time."""
        v = self.as_vector(self.problem.v, layers)
        matrix = self.build(KINDS[representation], layers)
        matrix.solve(v, DAMPING)

        def forget() -> None:
            vars(matrix).pop("_ldl_factors", None)

        return Operation(
            lambda: matrix.solve(v, DAMPING),
            lambda found: self.by_name(found, layers),
            forget if when == "first" else None,
        )
