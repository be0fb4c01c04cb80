"""Memo: nothing that was computed from other numbers is given out, and no more is kept than the last of each name."""

import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nngeo_core.matrices.memo import Memo


def refuse() -> Tensor:
    raise AssertionError("made again")


def replaced(data: Tensor) -> Tensor:
    return data.clone() + 1


def changed(data: Tensor) -> Tensor:
    return data.add_(1)


def changed_twice_as_the_one_before(data: Tensor) -> Tensor:
    """Another tensor of the same version."""
    return (data.detach() * 2).add_(0)


@pytest.mark.parametrize("change", [replaced, changed, changed_twice_as_the_one_before])
def test_other_numbers_are_seen(change: Callable[[Tensor], Tensor]) -> None:
    memo, data = Memo(), torch.ones(2).add_(0)
    assert memo.get([data], "sum", data.sum) == 2
    assert memo.get([data], "sum", refuse) == 2
    other = change(data)
    assert memo.get([other], "sum", other.sum) == 4


def test_of_one_name_the_last_is_kept_and_no_more() -> None:
    memo, data = Memo(), torch.ones(2)
    first = memo.get([data], "solver", lambda: data * 3, of=0.1)
    memo.get([data], "eigh", lambda: data * 5)
    gone = weakref.ref(first)
    del first

    def second() -> Tensor:
        assert gone() is None  # there is no need of memory for both
        return data * 4

    memo.get([data], "solver", second, of=0.2)
    assert memo.get([data], "solver", refuse, of=0.2)[0] == 4
    assert memo.get([data], "eigh", refuse)[0] == 5
    assert memo.get([data], "solver", lambda: data * 3, of=0.1)[0] == 3


def test_what_is_kept_can_be_differentiated_with_later() -> None:
    memo, data = Memo(), torch.ones(2, requires_grad=True)
    with torch.inference_mode():
        memo.get([data], "double", lambda: data * 2)
    kept = memo.get([data], "double", refuse)
    v = torch.ones(2, requires_grad=True)
    (kept * v).sum().backward()
    assert not kept.requires_grad and v.grad is not None and v.grad.tolist() == [2, 2]


def test_what_could_not_be_made_is_made_the_next_time() -> None:
    memo, data = Memo(), torch.ones(2)
    memo.get([data], "solver", lambda: data * 2, of=1)
    with pytest.raises(AssertionError):
        memo.get([data], "solver", refuse, of=2)
    assert memo.get([data], "solver", lambda: data * 3, of=2)[0] == 3


def test_what_another_thread_makes_meanwhile_is_not_given_out() -> None:
    """Two threads that solve with two dampings."""
    memo, data = Memo(), torch.ones(2)

    def make() -> Tensor:
        thread = threading.Thread(target=memo.get, args=([data], "solver", lambda: data * 5, 0.2))
        thread.start()
        thread.join()
        return data * 3

    assert memo.get([data], "solver", make, of=0.1)[0] == 3
