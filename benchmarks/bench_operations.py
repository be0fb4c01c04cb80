"""What products, traces, kernels and solutions cost, in gradient passes or in products."""

from typing import Any

import torch

from benchmarks.subjects import DEVICES, LAYERS, SIZES, Subject, of_this_commit, representation_of_this_commit


class MatrixFree:
    """Work with F or the kernel of 64 examples without storing F."""

    param_names = ["device", "layer", "operation", "size"]
    params = [DEVICES, LAYERS, ["product", "quadratic form", "trace", "gram"], SIZES]

    def setup(self, device: str, layer: str, operation: str, size: int) -> None:
        """Make the model and the data, and run once."""
        self.subject = Subject(device, layer, size)
        self.run = self.chosen(operation)
        self.run()

    def chosen(self, operation: str) -> Any:
        """The operation of that name."""
        model, inputs = self.subject.model, self.subject.inputs
        if operation == "gram":
            kernel = of_this_commit("GramMatrix")
            return lambda: kernel(model, inputs)
        matrix = of_this_commit("FIM")(model, inputs, representation_of_this_commit("implicit"))
        v = of_this_commit("random_pvector")(matrix.layer_collection, device=self.subject.device)
        calls = {"product": lambda: matrix.mv(v), "quadratic form": lambda: matrix.vTMv(v), "trace": matrix.trace}
        return calls[operation]

    def time_operation(self, device: str, layer: str, operation: str, size: int) -> None:
        """Time one run."""
        self.run()
        self.subject.wait()

    def peakmem_operation(self, device: str, layer: str, operation: str, size: int) -> None:
        """Peak memory of the process that runs it."""
        self.run()

    def track_gradient_passes(self, device: str, layer: str, operation: str, size: int) -> float:
        """Return the time of one run divided by the time of one gradient pass."""
        return self.subject.ratio(self.run)

    track_gradient_passes.unit = "gradient passes"


class Solve:
    """Solve with a matrix again and again."""

    param_names = ["device", "representation", "size"]
    params = [DEVICES, ["dense", "blockdiag", "diag", "quasidiag", "kfac", "ekfac"], SIZES]

    def setup(self, device: str, representation: str, size: int) -> None:
        """Build the matrix of a network of linear layers, and solve once: factorizations are kept."""
        if representation == "dense" and size > 16:
            raise NotImplementedError("too large to be of use")
        self.subject = Subject(device, "linear", size)
        build = of_this_commit("FIM")
        self.matrix = build(self.subject.model, self.subject.inputs, representation_of_this_commit(representation))
        self.v = of_this_commit("random_pvector")(self.matrix.layer_collection, device=device)
        self.solve()

    def solve(self) -> object:
        """(M + r I)^-1 v."""
        return self.matrix.solve(self.v, 1e-2)

    def time_solve(self, device: str, representation: str, size: int) -> None:
        """Time one solution."""
        self.solve()
        self.subject.wait()

    def track_products(self, device: str, representation: str, size: int) -> float:
        """Return the time of a repeated solution divided by that of a product; 3 at most for KFAC."""
        clock = self.subject.seconds
        many = [lambda: [self.solve() for _ in range(10)], lambda: [self.matrix.mv(self.v) for _ in range(10)]]
        ratios = sorted(clock(many[0]) / clock(many[1]) for _ in range(5))
        return ratios[2]

    track_products.unit = "products"

    def track_residual(self, device: str, representation: str, size: int) -> float:
        """Return |(M + r I) x - v| / |v|."""
        found = self.matrix.mv(self.solve()) + 1e-2 * self.solve() - self.v
        return float(torch.as_tensor(found.norm() / self.v.norm()))

    track_residual.unit = "relative error"
