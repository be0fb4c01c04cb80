"""verify: agreement for sound models, an error that names the trouble for others."""

from typing import Any

import pytest
import torch
from torch import nn

from nngeo import FIM, LayerCollection, NNGeoError, PMatDiag, UnsupportedLayerError, verify
from nngeo_core.testing import MODELS, fisher


@pytest.mark.parametrize("name", ["conv", "called-twice", "tied-weight", "mlp-frozen-first"])
def test_sampled_entries_agree_with_autograd(name: str) -> None:
    case = MODELS[name]()
    report = verify(case.model, case.inputs, coordinates=20)
    assert set(report.errors) == {"dense", "diag"}
    assert max(report.errors.values()) < 1e-12
    assert report.entries["diag"] <= 20
    assert report.entries["dense"] == report.entries["diag"] ** 2
    assert "largest error" in str(report)


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


def test_what_holds_no_entry_exactly_cannot_be_verified() -> None:
    case = MODELS["mlp"]()
    with pytest.raises(NNGeoError, match="PMatKFAC holds no entry of F exactly"):
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
