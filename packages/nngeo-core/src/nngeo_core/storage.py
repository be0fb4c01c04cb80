"""Files of tensors with a header: written whole or not at all, and read only if every byte is as it was written.

A file is in the safetensors format, so that reading it never runs code. Its metadata have two entries: "nngeo", a JSON object
that says what the tensors are, and "digest", the SHA-256 of that text and of all tensors. docs/file-format.md has it in full.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from stat import S_IMODE
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nngeo_core.conventions import CONVENTIONS
from nngeo_core.errors import StorageError

__all__ = ["FORMAT", "Stored", "read_file", "remove_file", "tensor_bytes", "write_file"]

FORMAT = 1
"""The version of the format that is written, and the highest that is read."""


@dataclass(frozen=True)
class Stored:
    """What a file holds.

    Attributes:
        kind: What it is a file of: "pmat", "fmat", "sums" or "checkpoint".
        header: What whoever wrote it says of it.
        tensors: The tensors by name.
    """

    kind: str
    header: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def write_file(path: str | os.PathLike[str], content: Stored) -> None:
    """Write a file under a temporary name beside it, flush it to the disk, and rename it.

    Whatever happens meanwhile, `path` is afterwards either the whole new file or what it was before.

    Raises:
        StorageError: It could not be written, on a full disk for example.
        OSError: The folder does not exist, or may not be written to.
    """
    if _RESERVED in content.tensors:
        raise StorageError(
            f"a tensor cannot be stored as '{_RESERVED}', the name that safetensors keeps for the header"
        )
    versions = {"format": FORMAT, "conventions": CONVENTIONS, "release": _release()}
    text = _json({**content.header, **versions, "kind": content.kind})
    tensors = _separate(content.tensors)
    metadata = {"nngeo": text, "digest": _digest(text, tensors)}
    with _replacing(Path(os.path.realpath(path))) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise StorageError(
                f"could not write '{os.fspath(path)}': {error}; what was there before is unchanged"
            ) from error


def read_file(path: str | os.PathLike[str], kind: str, map_location: torch.device | str | None = None) -> Stored:
    """Read a file, all of it, if it is whole and of the given kind.

    Args:
        path: The file.
        kind: What it has to be a file of.
        map_location: The device of the tensors; None for the CPU.

    Raises:
        StorageError: It is damaged, cut short, of another format or kind, or of a newer release.
        OSError: There is no such file, or it may not be read.
    """
    with open(path, "rb"):
        pass  # or a missing file would be told from a damaged one by the text of a message only
    name = os.fspath(path)
    with _opened(name) as file:
        metadata = file.metadata() or {}
        if "nngeo" not in metadata:
            raise StorageError(
                f"'{name}' is a safetensors file that nngeo did not write: it has no entry 'nngeo' in its metadata, only "
                f"{sorted(metadata)}. Tensors of another program become a matrix by PMat...(data=, layer_collection=)"
            )
        header = _header(name, metadata["nngeo"], kind)
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    found = _digest(metadata["nngeo"], tensors)
    if metadata.get("digest") != found:
        raise StorageError(
            f"'{name}' is damaged: its contents have the digest {found}, and it says {metadata.get('digest')}"
        )
    return Stored(kind, header, {key: tensor.to(map_location or "cpu") for key, tensor in tensors.items()})


def remove_file(path: Path) -> None:
    """Remove a file, if it is there, with what killed processes left of attempts to write it."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        rmtree(leftover, ignore_errors=True)
    path.unlink(missing_ok=True)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, without a copy if it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # (numpy's stubs of Python 3.10)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the text, and of name, dtype, shape and bytes of each tensor in the order of the names."""
    state = sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        state.update(_json([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]).encode())
        state.update(tensor_bytes(tensor))
    return f"sha256:{state.hexdigest()}"


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, and none in the memory of another, as safetensors wants them."""
    taken: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != own.nbytes:
            own = own.clone()
        taken.add(own.untyped_storage().data_ptr())
        separate[name] = own
    return separate


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` on leaving; or is removed, if an exception ends the block.

    It is in a folder of its own beside `path`, because safetensors makes temporary files as well, which a killed process
    leaves behind; and which only their owner may read.
    """
    folder = path.with_name(f".{path.name}.{token_hex(8)}.tmp")
    folder.mkdir()
    temporary = folder / path.name
    try:
        temporary.touch()
        mode = (path if path.exists() else temporary).stat().st_mode
        yield temporary
        temporary.chmod(S_IMODE(mode))
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, path)
    finally:
        rmtree(folder, ignore_errors=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        _flush(path.parent, os.O_RDONLY)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _opened(name: str) -> Iterator[Any]:
    try:
        with safe_open(name, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise StorageError(
            f"'{name}' is not a whole safetensors file ({error}): it was damaged or cut short, or is of another format, such "
            "as a pickle, which is never loaded. Expected a file that `save` wrote"
        ) from error


def _header(name: str, text: str, kind: str) -> dict[str, Any]:
    """What the header says, if it is of a version, of conventions and of a kind that can be read."""
    try:
        header = json.loads(text)
        written, conventions, found = (header.pop(name) for name in ("format", "conventions", "kind"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"'{name}' is damaged: its header cannot be read ({error!r})") from error
    for what, number, known in (("format", written, FORMAT), ("conventions", conventions, CONVENTIONS)):
        if number != known:
            raise StorageError(
                f"'{name}' is of version {number!r} of the {what}, and this release of nngeo reads version {known}: "
                f"read it with the one that wrote it, {header.get('release', 'unknown')}, or with a later one"
            )
    if found != kind:
        raise StorageError(
            f"'{name}' holds {_described(found, header)}, expected a {kind}; {_INSTEAD.get(found, _OTHER)}"
        )
    return dict(header)


def _described(kind: Any, header: Mapping[str, Any]) -> str:
    return f"a {kind} '{header['name']}'" if "name" in header else f"a {kind}"


def _release() -> str:
    try:
        return version("nngeo-core")
    except PackageNotFoundError:
        return "unknown"


_RESERVED = "__metadata__"
_INSTEAD = {
    "pmat": "PMat.load(path) reads it",
    "fmat": "FMat.load(path) reads it",
    "sums": "Accumulator.load(path) reads it",
    "checkpoint": "a computation with checkpoint= reads it",
}
_OTHER = "nothing in this release reads that"
