"""Shelves: what stands side by side is what it was alone, and what differs stands apart."""

import pytest
import torch
from torch import nn

from nngeo_core import GramMatrix
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.plugins import registry
from nngeo_core.testing import MODELS, output_jacobian, relative_error
from nngeo_ntk.chunks import Source, pairs
from nngeo_ntk.contract import Kept
from nngeo_ntk.gradient_rows import GradientRows
from nngeo_ntk.recorded import Recorded
from nngeo_ntk.shelf import Arrived


def dense(kept: Kept) -> torch.Tensor:
    return kept.in_order().rows.transpose(0, 1) if isinstance(kept, GradientRows) else kept.to_dense()


@pytest.mark.parametrize("model", ["mlp", "conv-groups", "tied-weight", "positions-sequence"])
def test_batches_of_one_kind_make_one_chunk(model: str) -> None:
    case = MODELS[model]()
    generator = registry.generator("hooks")(case.model, "regression", check="every-batch")  # which joins no batches
    source = Source(generator, Recorded.of(generator, [(x,) for x in case.inputs.split(2)]), None, "all")
    ((first, second),) = pairs(source, None, 2**30)
    assert first is second
    names = [name for names in generator.layer_collection.parameter_names.values() for name in names]
    whole = torch.cat([dense(first.layers[name]) for name in generator.layer_collection], 2)
    assert relative_error(whole, output_jacobian(case.model, case.inputs, names)) <= 1e-12


def test_batches_of_other_lengths_stand_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 40)).double()
    batches = [(torch.randint(9, (2, length)),) for length in (3, 3, 5)]

    def function(tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(tokens).tanh().sum((1, 2)).unsqueeze(1)
        return found

    generator = registry.generator("hooks")(model, "regression", function)
    source = Source(generator, Recorded.of(generator, batches), "positions", "all")
    assert len(list(pairs(source, None, 2**30))) == 3  # two chunks, and each with itself
    rows = torch.cat(
        [output_jacobian(model, x, [n for n, _ in model.named_parameters()], function) for (x,) in batches], 1
    )
    expected = torch.einsum("cnd,kmd->cnkm", rows, rows)
    for method in (None, "positions", "gradients", "products"):
        found = GramMatrix(model, batches, function=function, method=method).get_dense_tensor()
        assert relative_error(found, expected) <= 1e-10


def test_bytes_are_counted_before_gradients_are_formed() -> None:
    case = MODELS["conv"]()
    generator = registry.generator("hooks")(case.model, "regression")
    batch = generator.jacobian(case.inputs)
    assert isinstance(batch, JacobianBatch)
    arrived = Arrived(batch, 0, "gradients", "all", len(case.inputs))
    numel = sum(layer.numel() for layer in generator.layer_collection.values())
    assert arrived.nbytes == case.n_output * len(case.inputs) * numel * 8
