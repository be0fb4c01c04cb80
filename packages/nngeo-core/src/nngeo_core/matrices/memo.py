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
        self._kept: dict[Hashable, tuple[Hashable, Any]] = {}
        self._seen: list[tuple[Tensor, int]] = []

    def get(self, tensors: Iterable[Tensor], key: Hashable, make: Callable[[], T], of: Hashable = None) -> T:
        """What `make` returned for these tensors, or returns now, outside of autograd.

        Args:
            tensors: Those that it is computed from.
            key: Its name.
            make: Computes it.
            of: What else it depends on, such as a damping: of one name, what was last made is kept and no more.
        """
        now = [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        before = self._seen
        if len(now) != len(before) or any(a is not b or i != j for (a, i), (b, j) in zip(now, before, strict=True)):
            self._kept, self._seen = {}, now
        if key not in self._kept or self._kept[key][0] != of:
            self._kept.pop(key, None)  # before the next is made: each may be as large as the matrix
            with torch.inference_mode(False), torch.no_grad():  # later calls may want to differentiate with it
                self._kept[key] = of, make()
        found: T = self._kept[key][1]
        return found
