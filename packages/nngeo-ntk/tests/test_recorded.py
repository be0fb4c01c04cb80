"""Recorded: batches with memory of their own, cut anywhere."""

import pytest
import torch
from torch import nn

from nngeo_core.plugins import registry
from nngeo_ntk.recorded import Recorded

GENERATOR = registry.generator("hooks")(nn.Linear(1, 1), "regression")


def test_batches_are_cut_at_any_example() -> None:
    x = torch.arange(6.0).unsqueeze(1)
    examples = Recorded.of(GENERATOR, iter([(x[:2],), (x[:0],), (x[2:],)]))
    assert len(examples) == 6
    for first in range(7):
        rest = [value for (batch,) in examples.starting_at(first) for value in batch.flatten().tolist()]
        assert rest == x.flatten().tolist()[first:]
    assert examples.one(3)[0].tolist() == [[3.0]]
    assert Recorded.of(GENERATOR, examples) is examples


def test_batches_of_a_loader_are_copied_and_one_batch_is_not() -> None:
    x = torch.ones(2, 1)
    loaded, listed, one = Recorded(GENERATOR, iter([x])), Recorded(GENERATOR, [(x,), (x,)]), Recorded(GENERATOR, x)
    x.zero_()
    assert (loaded.one(0).item(), listed.one(0)[0].item(), one.one(0).item()) == (1, 1, 0)


def test_no_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="no examples: list is empty; a kernel needs at least one example"):
        Recorded(GENERATOR, [])


def test_batches_in_a_list_look_like_one_batch_and_are_warned_of() -> None:
    batches = list(torch.ones(6, 1).split(2))
    with pytest.warns(UserWarning, match=r"list of 3 tensors of shape \(2, 1\) is one batch"):
        assert len(Recorded(GENERATOR, batches)) == 2
