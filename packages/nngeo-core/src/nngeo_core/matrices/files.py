"""Storable: matrices that are written to files and read from them, without a model."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from inspect import isabstract
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from nngeo_core.errors import PluginError, StorageError, UnsupportedOperationError
from nngeo_core.matrices.memo import Memo
from nngeo_core.plugins import registry
from nngeo_core.storage import Stored, read_file, write_file

__all__ = ["Storable", "describe_part", "restore_parts"]

Self = TypeVar("Self", bound="Storable")


class Storable(ABC):
    """What is made of named tensors and a few words about them.

    A class of one kind ("pmat", "fmat") implements `_description` and `_restored`. Copies share the generator, which holds the
    user's model: a copy of it would part from that. Pickled ones leave it behind, as files do.
    """

    kind: ClassVar[str]
    name: ClassVar[str]

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name; the data itself where that is one tensor."""
        data = vars(self).get("data")
        return {"data": data} if isinstance(data, Tensor) else {}

    @abstractmethod
    def _description(self) -> dict[str, Any]:
        """All else that it takes to make the same object again, in a form that JSON keeps."""

    @classmethod
    @abstractmethod
    def _restored(cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> Any:
        """The object that has these tensors and this description."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the stored tensors to a file, with all that it takes to read it without the model.

        The file appears whole or not at all; one that was there is replaced only by a whole one.

        Args:
            path: The file, which gets no other ending; ".safetensors" says what it is.

        Raises:
            UnsupportedOperationError: The representation stores no numbers, or cannot be made again from a file.
            StorageError: The file could not be written.
            OSError: The folder does not exist, or may not be written to.
        """
        tensors, header = self._contents()
        write_file(path, Stored(self.kind, header, tensors))

    def _contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file holds: tensors, and a header that names the representation, and them in their order."""
        tensors = self.tensors()
        if not tensors:
            raise self._without_numbers("written to a file")
        names = {"name": self.name, "class": _full_name(type(self)), "tensors": list(tensors)}
        return tensors, {**names, "about": self._description()}

    def _without_numbers(self, what: str) -> UnsupportedOperationError:
        return UnsupportedOperationError(
            f"a {type(self).__name__} stores no numbers that could be {what}: it computes its products from the model and the "
            "examples; keep those, or a representation that stores its numbers"
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        map_location: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """Read what `save` wrote, bit for bit; it has no generator.

        On an abstract class (`PMat.load`) any representation is read, by its registered name; on a concrete one that alone.

        Args:
            path: The file.
            map_location: The device of the result; None for the CPU, wherever it was saved.
            dtype: The dtype of the result; None for that of the file.

        Raises:
            StorageError: The file is damaged, cut short, of another format or a newer release, or holds something else.
            PluginError: The representation is not registered here; names it, and what to install.
            OSError: There is no such file, or it may not be read.
        """
        stored = read_file(path, cls.kind, map_location)
        tensors = dict(stored.tensors)
        if dtype is not None:
            tensors = {key: part.to(dtype) if part.is_floating_point() else part for key, part in tensors.items()}
        try:
            return cls._from_contents(tensors, stored.header)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise StorageError(
                f"'{os.fspath(path)}' is whole, and what it says does not fit together: {error}"
            ) from error

    @classmethod
    def _from_contents(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Any:
        """The object of a class that the header names, which is this one or below it."""
        kind, name = cls, header["name"]
        if isabstract(cls):
            kind = cls._find(name, header["class"])
        if kind.name != name or not issubclass(kind, cls):
            raise StorageError(
                f"the file holds a {cls.kind} '{name}' ({header['class']}), and {cls.__name__} is '{kind.name}'; the load of "
                "an abstract class (PMat.load) reads every representation"
            )
        in_order = {key: tensors[key] for key in header.get("tensors", tensors)}  # a file sorts them
        return kind._restored(in_order, header["about"])

    @classmethod
    def _find(cls, name: str, written_as: str) -> type["Storable"]:
        """The class registered under this name; or the one that wrote the file, if it is imported."""
        try:
            found: type[Storable] = registry.representation(name, kind=cls.kind)
        except PluginError as error:
            for other in _subclasses(cls):
                if _full_name(other) == written_as:
                    return other
            raise PluginError(
                f"the file holds a {cls.kind} '{name}', written by the class {written_as}: install the distribution that "
                f"provides the package '{written_as.partition('.')[0]}', or import that class. {error}"
            ) from error
        return found

    def __getstate__(self) -> dict[str, Any]:
        if not self.tensors():
            raise self._without_numbers("pickled")
        return {**self.__dict__, **self._emptied(), "generator": None}

    def __copy__(self: Self) -> Self:
        return self._copied(lambda value: value)

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        if not self.tensors():
            return self.__copy__()  # all that it has is the user's: model and examples
        generator = vars(self).get("generator")
        memo[id(generator)] = generator
        return self._copied(lambda value: deepcopy(value, memo))

    def _copied(self: Self, copied: Callable[[Any], Any]) -> Self:
        other = object.__new__(type(self))
        emptied = self._emptied()
        other.__dict__.update(
            {key: emptied[key] if key in emptied else copied(part) for key, part in vars(self).items()}
        )
        return other

    def _emptied(self) -> dict[str, Any]:
        """The attributes that hold what was computed from the data, without that: it may be functions."""
        return {key: Memo() for key, value in vars(self).items() if isinstance(value, Memo)}


def describe_part(part: Storable) -> dict[str, Any]:
    """The description of a matrix that another one is made of; its tensors are that one's as `"<place>.<name>"`."""
    return part._contents()[1]


def restore_parts(
    kind: type[Storable], tensors: Mapping[str, Tensor], descriptions: Sequence[Mapping[str, Any]]
) -> list[Any]:
    """The matrices that were described.

    Args:
        kind: A class above theirs.
        tensors: The tensors of all of them.
        descriptions: What `describe_part` returned for each, in order.
    """
    parts = []
    for place, header in enumerate(descriptions):
        start = f"{place}."
        own = {key.removeprefix(start): part for key, part in tensors.items() if key.startswith(start)}
        parts.append(kind._from_contents(own, header))
    return parts


def _subclasses(kind: type[Self]) -> Iterator[type[Self]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
