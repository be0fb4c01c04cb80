"""What surrounds a computation does not change it, nor is changed by it: other threads, and another default device."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo import (
    FIM,
    EmpiricalFIM,
    FIM_MonteCarlo,
    GramMatrix,
    Hessian,
    Jacobian,
    compare_representations,
    random_pvector,
    verify,
)

X, Y = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3


class Attention(nn.Module):
    """Which torch has a fast path for, and the generator switches that off."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, dropout=0.0)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x[:, None].expand(-1, 3, -1).contiguous()).mean(1))
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cells(x[:, None].expand(-1, 3, -1))[0][:, -1])
        return out


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))


def switches() -> tuple[Any, ...]:
    kernels = torch.backends.cuda
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch._C._get_mkldnn_enabled(),
        kernels.flash_sdp_enabled(),
        kernels.mem_efficient_sdp_enabled(),
        kernels.math_sdp_enabled(),
        torch.get_rng_state().tolist(),
    )


def test_threads_compute_what_one_does_and_leave_the_switches() -> None:
    """Also with one model between them."""
    models = [Attention().eval(), Recurrent().eval()]

    def all_of(model: nn.Module) -> list[Tensor]:
        v = random_pvector(FIM(model, X, "diag").layer_collection, generator=torch.Generator().manual_seed(0))
        product = FIM(model, X, "implicit").mv(v).get_flat_representation()
        return [product, FIM(model, X, "auto").trace(), GramMatrix(model, X, "trace").data]

    expected, before = [all_of(model) for model in models], switches()
    found: list[tuple[int, list[Tensor]]] = []

    def work(number: int) -> None:
        for _ in range(4):
            found.append((number, all_of(models[number])))

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 and switches() == before
    for number, parts in found:
        torch.testing.assert_close(parts, expected[number])


def drawn(matrix: Any) -> Any:
    return random_pvector(matrix.layer_collection, "cpu", generator=torch.Generator().manual_seed(0))


COMPUTED: dict[str, Callable[[nn.Module], Tensor]] = {
    **{
        f"FIM {name}": lambda model, name=name: FIM(model, X, name).get_dense_tensor()
        for name in ("dense", "kfac", "ekfac", "lowrank", "auto")
    },
    "empirical": lambda model: EmpiricalFIM(model, [(X, Y)], "blockdiag", variant="classif_logits").get_dense_tensor(),
    "sampled": lambda model: FIM_MonteCarlo(
        model, X, "quasidiag", generator=torch.Generator().manual_seed(0)
    ).get_dense_tensor(),
    "products": lambda model: (F := FIM(model, X, "implicit")).mv(drawn(F)).get_flat_representation(),
    "solutions": lambda model: (F := FIM(model, X, "implicit")).solve(drawn(F), 0.1).get_flat_representation(),
    "eigenvalues": lambda model: FIM(model, X, "implicit").eigendecomposition(2).values,
    "kernel": lambda model: GramMatrix(model, X).get_dense_tensor(),
    "kernel in parts": lambda model: GramMatrix(model, X, memory_budget=5000).get_dense_tensor(),
    "map": lambda model: Jacobian(model, X, "dense").get_dense_tensor(),
    "Hessian": lambda model: Hessian(model, [(X, Y)], "dense", variant="classif_logits").get_dense_tensor(),
    "verify": lambda model: torch.tensor(list(verify(model, X).errors.values()), device="cpu"),
    "compare": lambda model: torch.tensor(
        compare_representations(model, X, ["diag", "kfac"]).reference.trace, device="cpu"
    ),
}


@pytest.mark.parametrize("build", [perceptron, Recurrent])
@pytest.mark.parametrize("name", COMPUTED)
def test_any_default_device(name: str, build: Callable[[], nn.Module]) -> None:
    """A model on the CPU where new tensors would be made elsewhere, as after `torch.set_default_device("cuda")`."""
    model = build().eval()
    with torch.device("meta"):
        found = COMPUTED[name](model)
    torch.testing.assert_close(found, COMPUTED[name](model))
