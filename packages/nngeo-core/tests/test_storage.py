"""Files of tensors: whole or absent, the same bit for bit or refused, whatever happened to them."""

import json
import os
import pickle
import random
import resource
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nngeo_core import StorageError
from nngeo_core.storage import FORMAT, Stored, read_file, remove_file, write_file

KEPT = Path(__file__).parent / "data" / "kfac-format-1.safetensors"
TENSORS = {
    "": torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "a.scalar": torch.tensor(-0.0),
    "empty": torch.zeros(0, 3),
    "half": torch.tensor([1.5, float("nan"), float("inf")], dtype=torch.bfloat16),
    "count": torch.tensor(2**40),
    "été": torch.arange(6.0)[::2],
}
HEADER = {"name": "striped", "list": [1, "two", None], "fraction": 0.1}
CONTENT = Stored("pmat", HEADER, TENSORS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with all sorts of tensors."""
    path = tmp_path / "file.safetensors"
    write_file(path, CONTENT)
    return path


def same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and bits(first) == bits(second)


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def is_content(found: Stored) -> bool:
    return (
        found.tensors.keys() == TENSORS.keys()
        and all(same_bits(tensor, TENSORS[name]) for name, tensor in found.tensors.items())
        and {name: found.header[name] for name in HEADER} == HEADER
    )


def read_by_the_document(data: bytes) -> tuple[dict[str, Any], dict[str, tuple[str, list[int], bytes]]]:
    """Header, and dtype, shape and bytes of each tensor, by docs/file-format.md and nothing of the library."""
    (length,) = struct.unpack("<Q", data[:8])
    entries, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = entries.pop("__metadata__")
    names = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "I64": "int64"}
    state, tensors = sha256(metadata["nngeo"].encode()), {}
    for name in sorted(entries):
        start, stop = entries[name]["data_offsets"]
        dtype, shape = names[entries[name]["dtype"]], entries[name]["shape"]
        state.update(json.dumps([name, dtype, shape], separators=(",", ":")).encode())
        state.update(body[start:stop])
        tensors[name] = (dtype, shape, body[start:stop])
    assert metadata["digest"] == f"sha256:{state.hexdigest()}"
    return json.loads(metadata["nngeo"]), tensors


def test_what_is_written_is_read_bit_for_bit(path: Path) -> None:
    found = read_file(path, "pmat")
    assert is_content(found)
    assert found.kind == "pmat"
    assert {tensor.device.type for tensor in found.tensors.values()} == {"cpu"}


def test_tensors_come_to_the_device_asked_for(path: Path) -> None:
    for device in ("meta", torch.device("meta")):
        tensors = read_file(path, "pmat", device).tensors
        assert {tensor.device.type for tensor in tensors.values()} == {"meta"}
        assert {name: tensor.dtype for name, tensor in tensors.items()} == {n: t.dtype for n, t in TENSORS.items()}


def test_what_is_read_does_not_depend_on_the_file(path: Path) -> None:
    found = read_file(path, "pmat")
    path.write_bytes(bytes(path.stat().st_size))
    assert is_content(found)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.tensors.values() if tensor.numel()}) == 5


@pytest.mark.parametrize("where", ["written", "kept"])
def test_a_file_is_what_the_document_says(path: Path, where: str) -> None:
    kept = path if where == "written" else KEPT
    header, tensors = read_by_the_document(kept.read_bytes())
    assert (header["format"], header["conventions"], header["kind"]) == (1, 1, "pmat")
    found = read_file(kept, "pmat")
    assert {name: (str(t.dtype)[6:], list(t.shape), bits(t)) for name, t in found.tensors.items()} == tensors
    assert found.header == {key: part for key, part in header.items() if key not in ("format", "conventions", "kind")}


def test_tensors_that_share_memory_are_stored_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    tensors = {"whole": whole, "again": whole, "row": whole[1], "turned": whole.T, "wide": torch.ones(1).expand(4)}
    tensors["grown"] = torch.ones(2, requires_grad=True) * 2
    write_file(tmp_path / "file", Stored("pmat", {}, tensors))
    found = read_file(tmp_path / "file", "pmat").tensors
    assert all(same_bits(found[name], tensor.detach()) for name, tensor in tensors.items())
    with torch.inference_mode():
        write_file(tmp_path / "file", Stored("pmat", {}, {"made": torch.ones(2) * 3}))
    assert same_bits(read_file(tmp_path / "file", "pmat").tensors["made"], torch.ones(2) * 3)


def damaged_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Two hundred and more ways in which the bytes of a file can have changed."""
    source = random.Random(0)
    for _ in range(90):
        changed = bytearray(data)
        changed[source.randrange(len(data))] ^= 1 << source.randrange(8)
        yield "flipped bit", bytes(changed)
    for _ in range(60):
        yield "cut short", data[: source.randrange(len(data))]
    for _ in range(20):
        start = source.randrange(len(data))
        yield "hole", data[:start] + bytes(len(data[start : start + 64])) + data[start + 64 :]
    for size in range(1, 11):
        yield "longer", data + bytes(size)
    for _ in range(20):
        start, stop = sorted(source.sample(range(len(data)), 2))
        yield "shifted", data[:start] + data[stop:] + data[start:stop]


def test_damaged_files_are_refused_or_the_same(path: Path) -> None:
    outcomes = Counter[str]()
    data, damaged = path.read_bytes(), path.with_name("damaged")
    for damage, changed in damaged_files(data):
        damaged.write_bytes(changed)
        try:
            found = read_file(damaged, "pmat")
        except StorageError as error:
            assert str(damaged) in str(error)
            outcomes[damage] += 1
        else:
            assert is_content(found), damage
    assert outcomes.total() >= 195
    assert outcomes.keys() == {"flipped bit", "cut short", "hole", "longer", "shifted"}


def test_the_header_of_another_file_is_refused(path: Path) -> None:
    other = path.with_name("other")
    changed = {name: tensor + 1 for name, tensor in TENSORS.items()}
    write_file(other, Stored("pmat", HEADER, changed))
    headers, bodies = zip(*(split(file.read_bytes()) for file in (path, other)), strict=True)
    for header, body in ((headers[0], bodies[1]), (headers[1], bodies[0])):
        path.write_bytes(header + body)
        with pytest.raises(
            StorageError, match=r"is damaged: its contents have the digest sha256:.*and it says sha256:"
        ):
            read_file(path, "pmat")


def split(data: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return data[: 8 + length], data[8 + length :]


def rewritten(path: Path, old: str, new: str) -> None:
    """Change the text of a header, and its length with it."""
    header, body = split(path.read_bytes())
    changed = header[8:].decode().replace(old, new).encode()
    assert changed != header[8:]
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + body)


@pytest.mark.parametrize("what", ["format", "conventions"])
def test_a_newer_version_is_refused_with_the_release_that_wrote_it(path: Path, what: str) -> None:
    rewritten(path, f'\\"{what}\\":1', f'\\"{what}\\":2')
    expected = (
        rf"of version 2 of the {what}, and this release of nngeo reads version 1: read it with the one that wrote it"
    )
    with pytest.raises(StorageError, match=expected):
        read_file(path, "pmat")


def test_a_changed_header_is_refused(path: Path) -> None:
    rewritten(path, "striped", "spotted")
    with pytest.raises(StorageError, match="is damaged"):
        read_file(path, "pmat")


@pytest.mark.parametrize(("kind", "said"), [("fmat", "PMat.load"), ("checkpoint", "PMat.load")])
def test_another_kind_is_refused_with_what_reads_it(path: Path, kind: str, said: str) -> None:
    with pytest.raises(StorageError, match=rf"holds a pmat 'striped', expected a {kind}; {said}\(path\) reads it"):
        read_file(path, kind)


class Harm:
    """What a pickle can do on loading."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (f"{os.environ['HARMED']}",)


def test_foreign_files_are_refused_and_no_pickle_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARMED", str(tmp_path / "harmed"))
    torch.save({"weight": torch.ones(2)}, tmp_path / "torch")
    save_file({"weight": torch.ones(2)}, tmp_path / "weights", {"format": "pt"})
    foreign = {
        "pickle": pickle.dumps(Harm()),
        "torch": (tmp_path / "torch").read_bytes(),
        "empty": b"",
        "text": b"tensors\n" * 20,
        "zeros": bytes(100),
        "json": json.dumps(HEADER).encode(),
        "weights": (tmp_path / "weights").read_bytes(),
    }
    for name, data in foreign.items():
        (tmp_path / name).write_bytes(data)
        expected = "did not write: it has no entry 'nngeo'" if name == "weights" else "is not a whole safetensors file"
        with pytest.raises(StorageError, match=expected):
            read_file(tmp_path / name, "pmat")
    assert not (tmp_path / "harmed").exists()


def test_a_missing_file_or_folder_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "absent", "pmat")
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, "pmat")
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "absent" / "file", CONTENT)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Have the system refuse writes beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 9000, 60_000])
def test_a_full_disk_leaves_what_was_there(path: Path, size: int) -> None:
    before = path.read_bytes()
    large = Stored("pmat", {}, {"large": torch.ones(16_384)})
    with largest_file(size), pytest.raises(StorageError, match="could not write .* what was there before is unchanged"):
        write_file(path, large)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    assert is_content(read_file(path, "pmat"))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_of_any_step_leaves_what_was_there(path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space left"):
            write_file(path, Stored("pmat", {}, {"other": torch.ones(3)}))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_may_be_read_by_whom_the_user_lets_read_files(path: Path) -> None:
    plain = path.with_name("plain")
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    write_file(path, CONTENT)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_link_goes_on_pointing_to_the_file(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    write_file(link, Stored("pmat", {}, {"other": torch.ones(3)}))
    assert link.is_symlink()
    assert same_bits(read_file(path, "pmat").tensors["other"], torch.ones(3))


def test_a_reserved_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="'__metadata__', the name that safetensors keeps"):
        write_file(tmp_path / "file", Stored("pmat", {}, {"__metadata__": torch.ones(1)}))
    assert list(tmp_path.iterdir()) == []


def test_removing_takes_leftovers_along(path: Path) -> None:
    leftover = path.with_name(f".{path.name}.0123456789abcdef.tmp")
    leftover.mkdir()
    (leftover / path.name).write_bytes(b"half")
    other = path.with_name("other")
    other.write_bytes(b"")
    remove_file(path)
    remove_file(path)
    assert list(path.parent.iterdir()) == [other]


def test_the_version_is_the_documented_one() -> None:
    document = Path(__file__).parents[3] / "docs" / "file-format.md"
    assert f"version {FORMAT}" in document.read_text(encoding="utf-8")
