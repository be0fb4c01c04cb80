"""The representation passes the contract, and works with every layer that has a rule and with those that have none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nngeo_tkfac import PMatTKFAC, layout_of
from torch import Tensor, nn

from nngeo import (
    FIM,
    KroneckerFactors,
    KroneckerLayout,
    LayerCollection,
    LayerCollectionMismatchError,
    LinearLayer,
    NonFiniteError,
    ShapeError,
)
from nngeo_core.plugins import registry
from nngeo_core.testing import Case, PMatContract, relative_error

LAYERS = LayerCollection({"fc": LinearLayer(2, 3)})


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def tkfac_block(block: Tensor, index: Tensor) -> Tensor:
    """A layer's block from its exact one, where index (q, G, A) says which parameter is which entry of the matrices."""
    found = torch.zeros_like(block)
    for group in index:  # the parameters of one group, (G, A)
        exact = block[group.flatten()][:, group.flatten()].view(*group.shape, *group.shape)
        if exact.any():
            left, right = torch.einsum("gaha->gh", exact), torch.einsum("gagb->ab", exact)
            places = group.flatten()
            found[places.unsqueeze(1), places] = torch.kron(left, right) / torch.einsum("gaga->", exact)
    return found


def matrix_index(layers: LayerCollection, layer_id: str) -> Tensor:
    """Which parameter stands where, (q, G, A), of a linear layer or a convolution, from the shapes of weight and bias."""
    layer = layers[layer_id]
    shapes, q = layer.parameter_shapes(), getattr(layer, "groups", 1)
    columns, start = [], 0
    for shape in shapes.values():
        size = torch.Size(shape).numel()
        columns.append(torch.arange(start, start + size).view(q, shape[0] // q, -1))
        start += size
    return torch.cat(columns, -1)


class TestPMatTKFAC(PMatContract):
    representation = PMatTKFAC
    unsupported = frozenset({"add", "add_identity", "eigendecomposition", "inverse", "mm", "pinv", "sqrt"})

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        exact = super().dense_value(case, layers, variant)
        places = layers.slices()
        return torch.block_diag(
            *(tkfac_block(exact[place, place], matrix_index(layers, k)) for k, place in places.items())
        )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class First(nn.Module):
    """The first of what a module returns, or of what it returns at every step."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        found = self.module(x)
        return found[0] if isinstance(found, tuple) else found


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class Form(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.form = nn.Bilinear(3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x, x.flip(1))


def norm(kind: Any, channels: int, *options: Any, **named: Any) -> nn.Module:
    """With a weight that is not one, and statistics of its own where it keeps any."""
    module = kind(channels, *options, **named)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


TOKENS = torch.tensor([[0, 2, 2], [3, 1, 0], [4, 4, 4]])
LAYER_CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Linear(3, 2), numbers(5, 3)),
    "linear-sequence": (lambda: nn.Linear(3, 2), numbers(3, 4, 3)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 2, groups=1), numbers(3, 2, 5)),
    "conv2d-groups": (lambda: nn.Conv2d(2, 4, 2, groups=2), numbers(3, 2, 4, 3)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), numbers(2, 1, 3, 2, 3)),
    "conv-transpose1d": (lambda: nn.ConvTranspose1d(2, 3, 2), numbers(3, 2, 3)),
    "conv-transpose2d": (lambda: nn.ConvTranspose2d(2, 4, 2, groups=2), numbers(3, 2, 2, 3)),
    "conv-transpose3d": (lambda: nn.ConvTranspose3d(1, 2, 2), numbers(2, 1, 2, 2, 1)),
    "embedding": (lambda: nn.Embedding(5, 2), TOKENS),
    "embedding-bag": (lambda: nn.EmbeddingBag(5, 2), TOKENS),
    "batch-norm1d": (lambda: norm(nn.BatchNorm1d, 3), numbers(4, 3)),
    "batch-norm2d": (lambda: norm(nn.BatchNorm2d, 2), numbers(3, 2, 2, 3)),
    "batch-norm3d": (lambda: norm(nn.BatchNorm3d, 2), numbers(3, 2, 2, 2, 1)),
    "sync-batch-norm": (lambda: norm(nn.SyncBatchNorm, 3), numbers(4, 3)),
    "group-norm": (lambda: nn.GroupNorm(2, 4), numbers(3, 4, 3)),
    "instance-norm1d": (lambda: norm(nn.InstanceNorm1d, 2, affine=True), numbers(3, 2, 4)),
    "instance-norm2d": (lambda: norm(nn.InstanceNorm2d, 2, affine=True), numbers(3, 2, 2, 3)),
    "instance-norm3d": (lambda: norm(nn.InstanceNorm3d, 2, affine=True), numbers(3, 2, 2, 2, 2)),
    "layer-norm": (lambda: norm(nn.LayerNorm, 4), numbers(3, 2, 4)),
    "rms-norm": (lambda: norm(nn.RMSNorm, 4), numbers(3, 2, 4)),
    "attention": (Attention, numbers(3, 2, 4)),
    "rnn": (lambda: First(nn.RNN(2, 2, batch_first=True)), numbers(3, 3, 2)),
    "lstm": (lambda: First(nn.LSTM(2, 2, batch_first=True)), numbers(3, 3, 2)),
    "gru": (lambda: First(nn.GRU(2, 2, batch_first=True)), numbers(3, 3, 2)),
    "rnn-cell": (lambda: nn.RNNCell(3, 2), numbers(4, 3)),
    "lstm-cell": (lambda: First(nn.LSTMCell(3, 2)), numbers(4, 3)),
    "gru-cell": (lambda: nn.GRUCell(3, 2), numbers(4, 3)),
    "no-rule": (Form, numbers(4, 3)),
    "bare-parameter": (Shifted, numbers(4, 3)),
}


def network(case: str) -> nn.Module:
    """The layer, followed by what gives outputs (n, c)."""
    torch.manual_seed(0)
    return nn.Sequential(LAYER_CASES[case][0](), nn.Tanh(), nn.Flatten()).double().eval()


@pytest.mark.parametrize("case", LAYER_CASES)
def test_every_layer_has_the_partial_traces_of_its_exact_block(case: str) -> None:
    exact, found = FIM(network(case), LAYER_CASES[case][1], ["dense", "tkfac"], variant="regression")
    layers, entries, expected = exact.layer_collection, exact.get_dense_tensor(), []
    for layer_id, place in layers.slices().items():
        layout = layout_of(layers, layer_id)
        index = layout.to_matrix(torch.arange(layout.numel).double()).long()
        expected.append(tkfac_block(entries[place, place], index))
    assert relative_error(found.get_dense_tensor(), torch.block_diag(*expected)) <= 1e-10
    assert relative_error(found.trace(), entries.trace()) <= 1e-10


def test_those_are_all_layers_with_a_built_in_rule() -> None:
    modules = [module for case in LAYER_CASES for module in network(case).modules()]
    names = {f"{type(module).__module__}.{type(module).__qualname__}" for module in modules}
    assert {name for name in registry.names("rules") if name.startswith("torch.")} <= names


def test_a_layer_without_a_matrix_keeps_its_exact_block() -> None:
    blocks, found = FIM(network("layer-norm"), LAYER_CASES["layer-norm"][1], ["blockdiag", "tkfac"])
    assert relative_error(found.get_dense_tensor(), blocks.get_dense_tensor()) <= 1e-12
    assert found.layer_collection["0"].numel() == 8


def test_it_is_exact_for_one_linear_layer_under_squared_errors() -> None:
    exact, found = FIM(nn.Linear(3, 2).double(), numbers(5, 3), ["dense", "tkfac"], variant="regression")
    assert relative_error(found.get_dense_tensor(), exact.get_dense_tensor()) <= 1e-12


def test_what_it_will_store_is_known_beforehand() -> None:
    layers = LayerCollection.from_model(nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.LayerNorm(3)))
    assert PMatTKFAC.stored_numbers(layers) == {"0": 2 * (5**2 + 2**2), "1": 1 + 6**2}


@pytest.mark.parametrize(
    ("inputs", "outputs", "error", "message"),
    [
        (numbers(1, 2, 2), numbers(1, 3, 3), ShapeError, r"shapes \(1, 2, 2\) and \(1, 3, 3\); expected \(q, A, A\)"),
        (numbers(1, 3, 3), numbers(1, 3, 3) / 0, NonFiniteError, "layer 'fc': the factors have NaN or infinite"),
    ],
    ids=["shape", "infinite"],
)
def test_wrong_data_is_refused(inputs: Tensor, outputs: Tensor, error: type[Exception], message: str) -> None:
    factors = KroneckerFactors(inputs, outputs, KroneckerLayout(1, 3, 2, has_bias=True))
    with pytest.raises(error, match=message):
        PMatTKFAC(data={"fc": factors}, layer_collection=LAYERS)
    with pytest.raises(LayerCollectionMismatchError, match=r"a mapping with the layers \['fc'\], got \['head'\]"):
        PMatTKFAC(data={"head": factors}, layer_collection=LAYERS)
