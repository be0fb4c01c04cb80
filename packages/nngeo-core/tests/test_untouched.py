"""`undisturbed`: buffers, random states and modes are as before, whatever happens inside."""

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from nngeo_core.sweep.untouched import undisturbed

CPU = torch.device("cpu")


class Holder(nn.Module):
    """Buffers of every kind, one of them in a child and one shared with it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([1.0, 2.0]))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("cache", None)
        self.register_buffer("hidden", torch.tensor([float("nan")]), persistent=False)
        self.child = nn.Module()
        self.child.register_buffer("shared", self.mean)


def in_place(holder: Holder) -> None:
    holder.mean.add_(1)
    holder.count += 1


def through_data(holder: Holder) -> None:
    holder.mean.data.mul_(0)


def through_a_view(holder: Holder) -> None:
    holder.mean[0] = 7


def replaced(holder: Holder) -> None:
    holder.mean = torch.zeros(5)
    holder.count = torch.tensor(8)


def written_and_replaced(holder: Holder) -> None:
    holder.mean.zero_()
    holder.mean = torch.zeros(5)


def filled_in(holder: Holder) -> None:
    holder.cache = torch.ones(2)


def emptied(holder: Holder) -> None:
    holder.mean = None


def removed(holder: Holder) -> None:
    del holder.count


def added(holder: Holder) -> None:
    holder.register_buffer("late", torch.ones(1))
    holder.child.register_buffer("late", torch.ones(1))


def not_a_number(holder: Holder) -> None:
    holder.hidden.zero_()


CHANGES = [in_place, through_data, through_a_view, replaced, written_and_replaced]
CHANGES += [filled_in, emptied, removed, added, not_a_number]
every_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


def trace(model: nn.Module) -> list[Any]:
    return [
        (name, id(buffer), None if buffer is None else repr(buffer.tolist()))
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]


@every_change
@pytest.mark.parametrize("fails", [False, True])
def test_buffers_are_restored(change: Callable[[Holder], None], fails: bool) -> None:
    holder = Holder()
    before, keys = trace(holder), list(holder.state_dict())
    with suppress(ZeroDivisionError), torch.no_grad(), undisturbed(holder, CPU):
        change(holder)
        assert trace(holder) != before
        if fails:
            raise ZeroDivisionError
    assert (trace(holder), list(holder.state_dict())) == (before, keys)


def test_buffers_that_nobody_wrote_are_not_written() -> None:
    """A write would trip a graph that holds them."""
    holder = Holder()
    version = holder.mean._version
    with undisturbed(holder, CPU):
        pass
    assert holder.mean._version == version


def test_buffers_made_under_inference_mode_are_restored() -> None:
    with torch.inference_mode():
        holder = Holder()
        before = trace(holder)
        with undisturbed(holder, CPU), torch.inference_mode():
            holder.mean.add_(1)
        assert trace(holder) == before


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(numpy.random.rand()), random.random()


@pytest.mark.parametrize("fails", [False, True])
def test_random_states_are_restored(fails: bool) -> None:
    states = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
    expected = draws()
    torch.set_rng_state(states[0]), numpy.random.set_state(states[1]), random.setstate(states[2])
    with suppress(ZeroDivisionError), undisturbed(nn.Identity(), CPU):
        draws(), torch.manual_seed(5), numpy.random.seed(5), random.seed(5)
        if fails:
            raise ZeroDivisionError
    assert draws() == expected


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_results_take_part_in_autograd_and_the_mode_returns(mode: Callable[[], Any]) -> None:
    def modes() -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with mode():
        before = modes()
        with undisturbed(nn.Identity(), CPU):
            result: Tensor = torch.ones(2) + 1
            assert not torch.is_inference_mode_enabled()
        assert modes() == before
    assert not result.is_inference()
    weight = torch.ones(2, requires_grad=True)
    (weight * result).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [2, 2]


def test_passes_can_be_nested() -> None:
    holder = Holder()
    before = trace(holder)
    with undisturbed(holder, CPU):
        holder.mean.add_(1)
        inside = trace(holder)
        with undisturbed(holder, CPU):
            holder.mean.add_(1)
        assert trace(holder) == inside
    assert trace(holder) == before


def test_what_a_module_notes_of_its_calls_is_as_before() -> None:
    model = nn.Linear(2, 1)
    model.seen, model.last = ["kept"], None
    with undisturbed(model, CPU):
        model.last, model.new = torch.ones(1), 3
        model.seen.append("and this")
    assert model.last is None and not hasattr(model, "new") and model.seen == ["kept", "and this"]


@pytest.mark.parametrize("fails", [False, True])
def test_replaced_and_added_parameters_are_as_before(fails: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    before = dict(model[0]._parameters)
    with suppress(ZeroDivisionError), undisturbed(model, CPU):
        model[0].weight = nn.Parameter(torch.zeros(1, 2))
        model[0].bias = nn.Parameter(torch.zeros(1))
        model[0].register_parameter("late", nn.Parameter(torch.zeros(1)))
        if fails:
            raise ZeroDivisionError
    assert dict(model[0]._parameters) == before and model[0].weight is before["weight"]


def test_modules_that_a_call_adds_or_replaces_are_as_before() -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    first, names = model[0], list(model.state_dict())
    with undisturbed(model, CPU):
        model[0], model.extra = nn.Identity(), nn.Linear(1, 1)
    assert model[0] is first and list(model.state_dict()) == names


def test_threads_take_turns() -> None:
    """What one puts back would be what the other one set: torch's switches, modules' attributes, random states."""
    model, entered, waits = Holder(), threading.Event(), threading.Event()

    def other() -> None:
        waits.set()
        with undisturbed(Holder(), CPU):
            entered.set()

    thread = threading.Thread(target=other)
    with undisturbed(model, CPU), undisturbed(model, CPU):  # a computation may be part of another one
        thread.start()
        waits.wait()
        assert not entered.wait(0.2)
    thread.join()
    assert entered.is_set()
