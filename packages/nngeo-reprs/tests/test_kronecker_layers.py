"""Kronecker-factored matrices of all layer types that have factors, and of a small transformer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from nngeo_core import FIM, LayerCollection, UnsupportedOperationError, random_pvector
from nngeo_core.testing import relative_error

KINDS = ["kfac", "ekfac", "kfac-reduce", "ekfac-reduce", "quasidiag", "blockdiag"]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.attention(x, x, x)[0].mean(1)
        return outputs


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.cell(x)[0][:, -1]
        return outputs


BUILDERS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "linear": lambda: (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (5, 3)),
    "conv1d": lambda: (nn.Sequential(nn.Conv1d(4, 6, 2, groups=2), nn.Flatten(), nn.Linear(18, 2)), (5, 4, 4)),
    "conv3d": lambda: (nn.Sequential(nn.Conv3d(2, 3, 2), nn.Flatten(), nn.Linear(24, 2)), (5, 2, 3, 3, 3)),
    "transposed": lambda: (
        nn.Sequential(nn.ConvTranspose2d(4, 6, (2, 3), groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(72, 2)),
        (5, 4, 2, 2),
    ),
    "attention": lambda: (Attention(), (5, 3, 4)),
    "recurrent": lambda: (Recurrent(), (5, 3, 3)),
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_layer_types(kind: str) -> None:
    """Eigenvectors are those of the factors, and eigenvalues the second moments along them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, shape = BUILDERS[kind]()
        x = torch.randn(shape, dtype=torch.float64)
    kfac, ekfac, _, reduced, quasi, exact = FIM(model.double(), x, KINDS)
    for layer_id, u in ekfac.get_KFE().items():
        moments = (u.T @ exact.data[layer_id] @ u).diagonal()
        assert relative_error(ekfac.data[layer_id].values.flatten(), moments) <= 1e-10
        place = kfac.layer_collection.slices()[layer_id]
        factored = u.T @ kfac.get_dense_tensor()[place, place] @ u
        assert (factored - factored.diagonal().diag()).norm() <= 1e-10 * factored.norm()
    _check(ekfac, reduced, quasi)
    assert relative_error(quasi.get_diag(), exact.get_diag()) <= 1e-10


def _check(*matrices: Any) -> None:
    for matrix in matrices:
        v, dense = random_pvector(matrix.layer_collection, dtype=torch.float64), matrix.get_dense_tensor()
        flat, found = v.get_flat_representation(), matrix.solve(v, 10.0).get_flat_representation()
        assert relative_error(dense @ found + 10 * found, flat) <= 1e-10
        assert relative_error(matrix.mv(v).get_flat_representation(), dense @ flat) <= 1e-10


@pytest.fixture(scope="module")
def transformer() -> tuple[nn.Module, dict[str, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=11, n_positions=6, n_embd=4, n_layer=1, n_head=2)
        model = GPT2LMHeadModel(config).double().eval()
        return model, {"input_ids": torch.randint(11, (3, 4)), "attention_mask": torch.ones(3, 4, dtype=torch.long)}


def last_token(model: nn.Module) -> Callable[..., Tensor]:
    return lambda batch: model(**batch).logits[:, -1]


def test_a_small_transformer(transformer: tuple[nn.Module, dict[str, Tensor]]) -> None:
    model, batch = transformer
    projections = [
        module for name, module in model.named_modules() if name.rpartition(".")[2] in ("c_attn", "c_proj", "c_fc")
    ]
    layers = LayerCollection.from_model(model, only=[type(projections[0])])
    assert len(layers) == 4
    kfac, ekfac, reduce, ereduce, quasi, exact = FIM(
        model, batch, KINDS, function=last_token(model), layer_collection=layers
    )
    assert relative_error(ekfac.trace(), exact.trace()) <= 1e-10
    exact_dense = exact.get_dense_tensor()
    errors = [relative_error(matrix.get_dense_tensor(), exact_dense) for matrix in (kfac, ekfac)]
    assert errors[1] <= errors[0]
    _check(kfac, ekfac, reduce, ereduce, quasi)
    for layer_id, u in ekfac.get_KFE().items():
        moments = (u.T @ exact.data[layer_id] @ u).diagonal()
        assert relative_error(ekfac.data[layer_id].values.flatten(), moments) <= 1e-10


def test_an_embedding_tied_to_the_head_is_named(transformer: tuple[nn.Module, dict[str, Tensor]]) -> None:
    model, batch = transformer
    layers = LayerCollection.from_model(model, only=[nn.Embedding])
    for kind in ("kfac", "ekfac"):
        with pytest.raises(
            UnsupportedOperationError,
            match=r"layer 'transformer.wte': SumJacobian.*representation=\"auto\", or a mapping",
        ):
            FIM(model, batch, kind, function=last_token(model), layer_collection=layers)
