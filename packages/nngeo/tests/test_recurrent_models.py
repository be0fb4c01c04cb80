"""Fisher matrices of recurrent classifiers: exact ones, and KFAC by its formula."""

import pytest
import torch
from torch import Tensor, nn

from nngeo import FIM, PMatDense, PMatDiag, PMatKFAC, random_pvector
from nngeo_core.testing import fisher, kfac_factors, kronecker_block, relative_error

N, T, D, H, CLASSES = 4, 5, 3, 4, 3


class Classifier(nn.Module):
    """A recurrent layer, read at its last step."""

    def __init__(self, cell: nn.RNNBase, width: int = H) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.cell(x)[0][:, -1])
        return logits


class Unrolled(nn.Module):
    """The same with an LSTM written with linear layers that are called at each step."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.given, self.hidden = (nn.Linear(width, 4 * H, dtype=torch.float64) for width in (D, H))
        self.head = model.head
        state = model.cell.state_dict()
        for name, layer in {"ih": self.given, "hh": self.hidden}.items():
            layer.load_state_dict({part: state[f"{part}_{name}_l0"] for part in ("weight", "bias")})

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), H)
        for t in range(T):
            i, f, g, o = (self.given(x[:, t]) + self.hidden(h)).split(H, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        logits: Tensor = self.head(h)
        return logits


def examples() -> Tensor:
    return torch.randn(N, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def classifier(cell: nn.RNNBase, width: int = H) -> Classifier:
    model = Classifier(cell, width).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.6, generator=generator)
    return model


@pytest.mark.parametrize(
    ("cell", "width"),
    [
        (nn.LSTM(D, H, batch_first=True), H),
        (nn.LSTM(D, H, batch_first=True, proj_size=2), 2),
        (nn.GRU(D, H, 2, batch_first=True, bidirectional=True), 2 * H),
        (nn.RNN(D, H, batch_first=True, bias=False), H),
    ],
    ids=["lstm", "lstm-projected", "gru-deep", "rnn"],
)
def test_exact_matrices(cell: nn.RNNBase, width: int) -> None:
    model, x = classifier(cell, width), examples()
    dense, diagonal = FIM(model, x, PMatDense), FIM(model, x, PMatDiag)
    names = [name for name, _ in dense.layer_collection.named_parameters(model)]
    expected = fisher(model, x, names, "classif_logits")
    assert relative_error(dense.get_dense_tensor(), expected) <= 1e-10
    assert relative_error(diagonal.get_diag(), expected.diagonal()) <= 1e-10


def test_kfac_of_an_lstm_equals_its_formula() -> None:
    """That of linear layers called at each step: A adds up over the steps, G is an average over them."""
    model, x = classifier(nn.LSTM(D, H, batch_first=True)), examples()
    unrolled, matrix = Unrolled(model), FIM(model, x, PMatKFAC)
    assert relative_error(unrolled(x), model(x)) <= 1e-12
    assert list(matrix.layer_collection) == ["cell.weight_ih_l0", "cell.weight_hh_l0", "head"]
    blocks = [kronecker_block(*kfac_factors(unrolled, x, path, "classif_logits"), has_bias=True)
              for path in ("given", "hidden", "head")]  # fmt: skip
    expected = torch.block_diag(*blocks)
    assert relative_error(matrix.get_dense_tensor(), expected) <= 1e-10
    v = random_pvector(matrix.layer_collection, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    solved = torch.linalg.solve(
        expected + 0.1 * torch.eye(len(expected), dtype=torch.float64), v.get_flat_representation()
    )
    assert relative_error(matrix.solve(v, 0.1).get_flat_representation(), solved) <= 1e-10


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_batches_and_budgets_change_nothing(cell: type[nn.RNNBase]) -> None:
    model, x = classifier(cell(D, H, batch_first=True)), examples()
    loader = [(part, torch.zeros(len(part))) for part in x.split([1, 3])]
    for representation in (PMatDiag, PMatKFAC):
        expected = FIM(model, x, representation).get_diag()
        assert relative_error(FIM(model, loader, representation).get_diag(), expected) <= 1e-12
        assert relative_error(FIM(model, x, representation, memory_budget=1).get_diag(), expected) <= 1e-12
