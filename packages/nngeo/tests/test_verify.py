"""verify: agreement for sound models, an error that names the trouble for others."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from nngeo import FIM, LayerCollection, NNGeoError, PMatDiag, PMatKFAC, UnsupportedLayerError, verify
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.layout import KroneckerFactors
from nngeo_core.testing import MODELS, fisher


class Tokens(nn.Module):
    """Embeddings, one with padding and one shared by all examples, around an attention or a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(7, 4, padding_idx=0), nn.Embedding(5, 4)
        self.layer, self.head = layer, nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor) -> Any:
        x = self.embed(tokens) + self.position(torch.arange(5)[None])
        found = self.layer(x, x, x)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        return self.head((found[0] if isinstance(found, tuple) else found).tanh())


TOKENS = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name",
    ["conv-groups", "conv-same", "called-twice", "tied-weight-own-bias", "mlp-frozen-first", "positions-sequence"],
)
def test_sampled_entries_agree_with_autograd(name: str) -> None:
    case = MODELS[name]()
    report = verify(case.model, case.inputs, coordinates=20)
    assert {"blockdiag", "dense", "diag", "kfac"} <= set(report.errors)
    assert max(report.errors.values()) < 1e-12
    assert report.entries["diag"] <= 20
    assert report.entries["dense"] == report.entries["diag"] ** 2
    assert report.entries == report.sampled and report.entries["kfac"] == report.entries["blockdiag"]
    assert "largest error" in str(report)


def test_positions_that_do_not_count() -> None:
    """Padding that an embedding has no derivative for, and positions whose labels a likelihood ignores."""
    labels = TOKENS.masked_fill(TOKENS < 3, -100)
    model = Tokens(nn.Sequential(nn.Linear(4, 4), nn.Tanh())).double()
    report = verify(model, (TOKENS, labels), "causal_lm_logits", ["dense", "kfac"], coordinates=70)
    assert max(report.errors.values()) < 1e-12
    assert report.entries == {"dense": 70**2, "kfac": report.sampled["kfac"]}


def test_transposed_convolutions() -> None:
    layers = [nn.Conv1d(2, 4, 3, groups=2), nn.Tanh(), nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(6 * 9, 3)).double()
    x = torch.randn(3, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    report = verify(model, x, representations=["kfac"])
    assert report.errors["kfac"] < 1e-12 and report.entries["kfac"] == report.sampled["kfac"]


@pytest.mark.parametrize("layer", [nn.MultiheadAttention(4, 2, batch_first=True), nn.GRU(4, 4, batch_first=True)])
def test_layers_without_a_formula_are_counted(layer: nn.Module) -> None:
    model = nn.Sequential(Tokens(layer), nn.Flatten()).double()
    report = verify(model, TOKENS, coordinates=60)
    assert max(report.errors.values()) < 1e-12
    assert 0 < report.entries["kfac"] < report.sampled["kfac"] == report.entries["blockdiag"]
    assert f"{report.entries['kfac']} of {report.sampled['kfac']}" in str(report)


def test_kfac_is_left_out_where_it_cannot_be_had() -> None:
    """A normalisation has no factors; nor has an embedding that is used outside of its call, which only a batch shows."""

    class Tied(Tokens):
        def forward(self, tokens: torch.Tensor) -> Any:
            return nn.functional.linear(super().forward(tokens)[:, 0], self.embed.weight[:, :3])

    normed = verify(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).double(), torch.randn(3, 3).double())
    tied = verify(Tied(nn.Sequential(nn.Linear(4, 4), nn.Tanh())).double(), TOKENS)
    assert "kfac" not in normed.errors and "kfac" not in tied.errors
    assert max(*normed.errors.values(), *tied.errors.values()) < 1e-12


def test_float32_agrees_to_its_rounding() -> None:
    case = MODELS["conv"]().to(torch.float32)
    assert max(verify(case.model, case.inputs).errors.values()) < 1e-5


def test_a_wrong_entry_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A representation whose diagonal is one percent off."""
    right = PMatDiag.get_diag
    monkeypatch.setattr(PMatDiag, "get_diag", lambda self: right(self) * 1.01)
    case = MODELS["mlp"]()
    with pytest.raises(NNGeoError, match="entries differ from plain autograd"):
        verify(case.model, case.inputs)


@pytest.mark.parametrize("factor", ["inputs", "outputs"])
def test_a_wrong_factor_is_found(factor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if positions were averaged over where they are summed, or the other way round."""
    right = KroneckerJacobian.kronecker_factors

    def wrong(self: KroneckerJacobian, inputs: bool = True) -> KroneckerFactors:
        found = right(self, inputs)
        return replace(found, **{factor: getattr(found, factor) * self.positions})

    monkeypatch.setattr(KroneckerJacobian, "kronecker_factors", wrong)
    case = MODELS["positions-sequence"]()
    with pytest.raises(NNGeoError, match=r"(?s)entries differ from plain autograd.*kfac +\d+ +[1-9]\.\de\+00"):
        verify(case.model, case.inputs)


def test_what_has_no_known_entry_cannot_be_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PMatKFAC, "exact_entries", "")
    case = MODELS["mlp"]()
    with pytest.raises(NNGeoError, match="PMatKFAC holds no entry of F exactly, nor by a formula"):
        verify(case.model, case.inputs, representations=["kfac"])


def test_a_model_that_mixes_examples_is_refused() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> Any:
            return self.linear(x - x.mean(0))

    with pytest.raises(UnsupportedLayerError, match="mixes examples"):
        verify(Centred(), torch.randn(4, 3))


def test_trainable_parameters_alone() -> None:
    """Frozen weights are left out of the collection, and the rest of F is the block of the whole one."""
    case = MODELS["mlp-frozen-first"]()
    layers = LayerCollection.from_model(case.model, trainable_only=True)
    names = [name for name, parameter in case.model.named_parameters() if parameter.requires_grad]
    assert [name for name, _ in layers.named_parameters(case.model)] == names
    matrix = FIM(case.model, case.inputs, "dense", layer_collection=layers)
    expected = fisher(case.model, case.inputs, names, "classif_logits")
    assert torch.allclose(matrix.get_dense_tensor(), expected, rtol=1e-10, atol=1e-14)
    assert max(verify(case.model, case.inputs, layer_collection=layers).errors.values()) < 1e-12


def test_reduced_factors_are_not_taken_for_those_of_kfac() -> None:
    """Over shared positions the two are different matrices, and only one of them is what the formula says."""
    case = MODELS["positions-sequence"]()
    report = verify(case.model, case.inputs)
    assert "kfac" in report.errors and "kfac-reduce" not in report.errors
