"""The automatic choice of representations on today's architectures, most of which KFAC alone refuses."""

from typing import Any

import pytest
import torch

from nngeo import FIM, PMatBlockDiag, PMatDiag, PMatKFAC, UnsupportedOperationError, random_pvector

from .architectures import ARCHITECTURES

CHOSEN = ["gpt2-eager", "llama-eager", "vit-eager", "convnext", "resnet", "transformer-encoder", "lstm", "experts"]


@pytest.mark.parametrize("name", CHOSEN)
def test_automatic_parts_hold_what_the_kinds_hold(name: str) -> None:
    case = ARCHITECTURES[name]()
    options: dict[str, Any] = {"variant": "regression", "function": case.outputs}
    mixed, blocks = FIM(case.model, case.inputs, ["auto", "blockdiag"], **options)
    found = {type(part): part for part in mixed.data}
    assert PMatKFAC in found
    assert found.keys() <= {PMatKFAC, PMatBlockDiag, PMatDiag}
    alone = FIM(case.model, case.inputs, "kfac", layer_collection=found[PMatKFAC].layer_collection, **options)
    assert torch.equal(found[PMatKFAC].get_diag(), alone.get_diag())
    for part in mixed.data:
        for layer_id, place in part.layer_collection.slices().items():
            block = blocks.data[layer_id]
            if isinstance(part, PMatDiag):
                assert (part.data[place] - block.diagonal()).norm() <= 1e-10 * block.norm()
            elif isinstance(part, PMatBlockDiag):
                assert (part.data[layer_id] - block).norm() <= 1e-10 * block.norm()
    v = random_pvector(mixed.layer_collection, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solution = mixed.solve(v, 0.1)
    assert (mixed @ solution + 0.1 * solution - v).norm() <= 1e-10 * v.norm()
    if len(found) > 1:
        with pytest.raises(UnsupportedOperationError, match="is not a sum of Kronecker products"):
            FIM(case.model, case.inputs, "kfac", **options)
