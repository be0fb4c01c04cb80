"""Accumulator: sums by name, counts by first slice, and what merges, saves and loads."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import nngeo_core.sweep.accumulator
from nngeo_core.errors import LayerCollectionMismatchError, ShapeError, UnsupportedOperationError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.layer import LinearLayer
from nngeo_core.plugins import PluginWarning, Registry
from nngeo_core.sweep.accumulator import Accumulator

LAYERS = LayerCollection({"fc": LinearLayer(2, 1)})


class Diagonal(Accumulator):
    def accumulate(self, batch: JacobianBatch) -> None:
        self.add("squares", batch.layers["fc"].sum_of_squares())

    def finalize(self) -> Tensor:
        return self.sums["squares"] / self.n_examples


class Other(Diagonal):
    pass


def batch(values: Tensor, start: int = 0, total: int | None = None) -> JacobianBatch:
    stop = start + len(values)
    return JacobianBatch(
        {"fc": DenseJacobian(values)}, values.shape[1], slice(start, stop), total or stop, values.dtype, values.device
    )


def filled(*batches: JacobianBatch) -> Diagonal:
    accumulator = Diagonal(LAYERS)
    accumulator.begin_pass(0)
    for one in batches:
        accumulator.update(one)
    return accumulator


J = torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
EXPECTED = J.square().sum((0, 1)) / 6


def test_examples_are_counted_on_the_first_slice_of_their_directions() -> None:
    found = filled(batch(J[:1], 0, 4), batch(J[1:3], 1, 4), batch(J[3:], 3, 4))
    assert found.n_examples == 6
    assert torch.allclose(found.finalize(), EXPECTED, rtol=1e-14, atol=0)


def test_directions_with_a_minus_sign_are_refused_unless_the_accumulator_takes_them() -> None:
    negative = replace(batch(J), sign=-1)
    with pytest.raises(UnsupportedOperationError, match="Diagonal cannot take directions that enter with a minus sign"):
        filled(negative)

    class Signed(Diagonal):
        signed = True

        def accumulate(self, batch: JacobianBatch) -> None:
            self.add("squares", batch.sign * batch.layers["fc"].sum_of_squares())

    found = Signed(LAYERS)
    found.update(negative)
    assert torch.allclose(found.finalize(), -EXPECTED, rtol=1e-14, atol=0)


def test_batches_add_up() -> None:
    found = filled(batch(J[:, :1]), batch(J[:, 1:4]), batch(J[:, 4:]))
    assert found.n_examples == 6
    assert torch.allclose(found.finalize(), EXPECTED, rtol=1e-14, atol=0)


def test_halves_merge_to_the_whole() -> None:
    first, second = filled(batch(J[:, :2])), filled(batch(J[:, 2:]))
    kept = second.sums["squares"].clone()
    first.merge(second)
    assert first.n_examples == 6
    assert torch.allclose(first.finalize(), EXPECTED, rtol=1e-14, atol=0)
    assert second.n_examples == 4 and second.sums["squares"].equal(kept)


class Refusing(Diagonal):
    def accumulate(self, batch: JacobianBatch) -> None:
        raise UnsupportedOperationError("layer 'fc' has no factors; use the diagonal.")


def test_a_refusal_names_the_plugins_that_failed(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nngeo_core.sweep.accumulator, "registry", Registry())
    with pytest.raises(UnsupportedOperationError, match=r"no factors; use the diagonal\.$"):
        Refusing(LAYERS).update(batch(J))
    install("alpha", "raise OSError('no disk')")
    monkeypatch.setattr(nngeo_core.sweep.accumulator, "registry", Registry())
    with (
        pytest.warns(PluginWarning, match="plugin 'alpha'"),
        pytest.raises(
            UnsupportedOperationError, match=r"the diagonal\. One of these may be at fault: plugin 'alpha' of"
        ),
    ):
        Refusing(LAYERS).update(batch(J))


def test_merging_into_an_empty_one_copies() -> None:
    empty, full = Diagonal(LAYERS), filled(batch(J))
    empty.merge(full)
    empty.update(batch(J))
    assert torch.allclose(full.finalize(), EXPECTED, rtol=1e-14, atol=0)
    assert empty.n_examples == 12 and torch.allclose(empty.finalize(), EXPECTED, rtol=1e-14, atol=0)


def test_merging_an_empty_one_changes_nothing() -> None:
    full = filled(batch(J))
    full.merge(Diagonal(LAYERS))
    assert full.n_examples == 6 and torch.allclose(full.finalize(), EXPECTED, rtol=1e-14, atol=0)


def test_other_kinds_and_other_layers_do_not_merge() -> None:
    with pytest.raises(TypeError, match="Diagonal merges with its own kind, got Other"):
        Diagonal(LAYERS).merge(Other(LAYERS))
    with pytest.raises(LayerCollectionMismatchError):
        Diagonal(LAYERS).merge(Diagonal(LayerCollection({"fc": LinearLayer(2, 2)})))


def test_a_saved_state_goes_on_where_it_was() -> None:
    first = filled(batch(J[:, :2]))
    state = first.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {"n_examples": (), "sums.squares": (3,)}
    first.update(batch(J[:, :1]))  # what follows must not reach into the saved state
    second = Diagonal(LAYERS)
    second.load_state_dict(state)
    second.begin_pass(0)
    second.update(batch(J[:, 2:]))
    assert second.n_examples == 6
    assert torch.allclose(second.finalize(), EXPECTED, rtol=1e-14, atol=0)


def test_a_loaded_state_is_a_copy() -> None:
    state = filled(batch(J)).state_dict()
    kept = state["sums.squares"].clone()
    loaded = Diagonal(LAYERS)
    loaded.load_state_dict(state)
    loaded.update(batch(J))
    assert state["sums.squares"].equal(kept)


def test_another_state_is_refused() -> None:
    with pytest.raises(ShapeError) as error:
        Diagonal(LAYERS).load_state_dict({"weight": torch.ones(1), "bias": torch.ones(1)})
    assert str(error.value) == "not the state of an accumulator: got the keys ['bias', 'weight'], expected 'n_examples'"


def test_a_later_pass_counts_anew() -> None:
    accumulator = filled(batch(J))
    accumulator.begin_pass(1)
    assert accumulator.n_examples == 0
    accumulator.update(batch(J[:, :2]))
    assert accumulator.n_examples == 2
