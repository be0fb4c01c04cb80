"""What it costs to build each representation, and how far its products are from those of F."""

import torch
from torch import Tensor
from torch.func import functional_call, jvp, vjp

from benchmarks.subjects import DEVICES, LAYERS, SIZES, Subject, of_this_commit, representation_of_this_commit

REPRESENTATIONS = ["dense", "blockdiag", "diag", "quasidiag", "kfac", "ekfac"]
SMALL_ENOUGH = {"dense": [("linear", 16)], "blockdiag": [("linear", 64), *((layer, 16) for layer in LAYERS)]}
"""The layers and sizes for which large matrices are built."""


class Build:
    """Build a matrix of 64 examples."""

    param_names = ["device", "layer", "representation", "size"]
    params = [DEVICES, LAYERS, REPRESENTATIONS, SIZES]

    def setup(self, device: str, layer: str, representation: str, size: int) -> None:
        """Make the model and the data, and build once: plugins load at the first look-up."""
        if (layer, size) not in SMALL_ENOUGH.get(representation, [(layer, size)]):
            raise NotImplementedError("too large to be of use")
        if layer == "attention" and "kfac" in representation:
            raise NotImplementedError("normalisations have no Kronecker factors")
        self.subject = Subject(device, layer, size)
        self.build = of_this_commit("FIM")
        self.representation = representation_of_this_commit(representation)
        self.matrix()

    def matrix(self) -> object:
        """Build the matrix from the whole data as one batch."""
        return self.build(self.subject.model, self.subject.inputs, self.representation, 10, "classif_logits")

    def time_build(self, device: str, layer: str, representation: str, size: int) -> None:
        """Time one build."""
        self.matrix()
        self.subject.wait()

    def peakmem_build(self, device: str, layer: str, representation: str, size: int) -> None:
        """Peak memory of the process that builds it."""
        self.matrix()

    def track_gradient_passes(self, device: str, layer: str, representation: str, size: int) -> float:
        """Return the time of one build divided by the time of one gradient pass."""
        return self.subject.ratio(self.matrix)

    track_gradient_passes.unit = "gradient passes"

    def track_relative_error(self, device: str, layer: str, representation: str, size: int) -> float:
        """Return |M v - F v| / |F v|, F v by forward and reverse mode: rounding if M is F, else what M neglects."""
        matrix, model = self.matrix(), self.subject.model
        generator = torch.Generator().manual_seed(2)
        v = torch.randn(matrix.layer_collection.numel(), generator=generator).to(device)
        exact = exact_product(self.subject, v, [p for _, p in matrix.layer_collection.named_parameters(model)])
        return float((matrix.mv(v.unsqueeze(0)).squeeze(0) - exact).norm() / exact.norm())

    track_relative_error.unit = "relative error"


def exact_product(subject: Subject, v: Tensor, order: list[Tensor]) -> Tensor:
    """F v by plain `torch.func`, for parameters in that order."""
    model = subject.model
    names = {id(p): name for name, p in model.named_parameters()}
    parts = v.split([p.numel() for p in order])
    tangents = {names[id(p)]: part.view(p.shape) for p, part in zip(order, parts, strict=True)}
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(values: dict[str, Tensor]) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            found: Tensor = functional_call(model, values, (subject.inputs,))
        return found

    torch.backends.mha.set_fastpath_enabled(False)  # it has no derivatives
    logits, change = jvp(outputs, (parameters,), (tangents,))
    p = logits.softmax(1)
    (found,) = vjp(outputs, parameters)[1](p * change - p * (p * change).sum(1, keepdim=True))
    return torch.cat([found[names[id(p)]].flatten() for p in order]) / len(subject.inputs)
