"""Memo: what was computed from a matrix's tensors, for the next call that needs it."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Memo"]

T = TypeVar("T")


class Memo:
    """Keeps what was computed from tensors until one of them is replaced or changed in place.

    Example:
        >>> memo, data = Memo(), torch.ones(2)
        >>> memo.get([data], "sum", data.sum)
        tensor(2.)
        >>> memo.get([data.zero_()], "sum", data.sum)
        tensor(0.)
    """

    def __init__(self) -> None:
        self._state: tuple[list[tuple[Tensor, int]], dict[Hashable, tuple[Hashable, Any]]] = [], {}

    def get(self, tensors: Iterable[Tensor], key: Hashable, make: Callable[[], T], of: Hashable = None) -> T:
        """What `make` returned for these tensors, or returns now, outside of autograd.

        Args:
            tensors: Those that it is computed from.
            key: Its name.
            make: Computes it.
            of: What else it depends on, such as a damping: of one name, what was last made is kept and no more.
        """
        now = [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        before, kept = self._state
        if len(now) != len(before) or any(a is not b or i != j for (a, i), (b, j) in zip(now, before, strict=True)):
            kept = {}
            self._state = now, kept
        entry = kept.get(key)
        if entry is not None and entry[0] == of:
            found: T = entry[1]
            return found
        del entry
        kept.pop(key, None)  # before the next is made: each may be as large as the matrix
        with torch.inference_mode(False), torch.no_grad():  # later calls may want to differentiate with it
            made = make()
        kept[key] = of, made
        return made  # and not what is kept by then: another thread may have made it for another damping
