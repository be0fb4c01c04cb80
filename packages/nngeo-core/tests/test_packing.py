"""Tensors side by side in one buffer come out as they went in."""

import pytest
import torch

from nngeo_core.parallel import packing
from nngeo_core.parallel.packing import in_buckets, pack, unpack

CPU = torch.device("cpu")


def test_pack_keeps_values_shapes_and_dtypes() -> None:
    tensors = [
        torch.randn(3, 5, dtype=torch.float64).T,
        torch.tensor(7),
        torch.empty(0, 4),
        torch.ones(1, 2, dtype=torch.bfloat16),
        torch.tensor([True, False]),
    ]
    value, found = unpack(pack({"a": [1, None, "b"]}, tensors, CPU))
    assert value == {"a": [1, None, "b"]}
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in tensors]
    assert all(one.shape == two.shape and torch.equal(one, two) for one, two in zip(found, tensors, strict=True))
    assert unpack(pack(3, [], CPU)) == (3, [])


def test_buckets_hold_small_neighbours_of_one_dtype_and_large_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BUCKET_BYTES", 100)
    tensors = {"a": torch.ones(5), "b": torch.ones(2, 3), "c": torch.ones(3).double(), "d": torch.ones(60).double()}
    tensors |= {"e": torch.ones(4, 3).double().T}
    found = list(in_buckets(tensors))
    assert [(len(one.tensors), one.buffer.numel()) for one in found] == [(2, 11), (1, 3), (1, 60), (1, 12)]
    for bucket in found:
        bucket.buffer.mul_(2)
        bucket.unpack()
    assert all(bool((tensor == 2).all()) for tensor in tensors.values())
    assert found[2].buffer.data_ptr() == tensors["d"].data_ptr()  # no copy of what is large
