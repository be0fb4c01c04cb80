"""Several processes with a shard of the examples each compute what one process computes from all of them."""

import pytest
import torch
from torch import Tensor

from .distributed_work import BY_BATCH, branches, entries, kernels, matrices, one_reaches, other, products, shard
from .processes import Failure, run

GPUS = torch.cuda.device_count()
JOINED = [(size, "gloo") for size in (2, 3, 4)] + [(size, "nccl") for size in (2, 3, 4) if size <= GPUS]
TOLERANCE = 1e-12


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    """What one process computes from all examples, batch by batch as the shards of four processes have them."""
    loader = [batch for rank in range(4) for batch in shard(4, rank)]
    return products(loader) | entries(matrices(loader))


@pytest.mark.parametrize(("size", "backend"), JOINED)
def test_all_processes_have_what_one_has(size: int, backend: str, alone: dict[str, Tensor]) -> None:
    shards = [shard(size, rank) for rank in range(size)]
    joined = [batch for one in shards for batch in one]
    expected = alone | kernels(joined, [batch for one in shards for batch in other(one)])
    expected |= branches([batch for rank, one in enumerate(shards) for batch in one_reaches(one, rank)])
    found = run("distributed_work.py", "everything", size, backend=backend)
    assert [one for one in found if isinstance(one, Failure)] == []
    for name, value in expected.items():
        assert all(torch.equal(one[name], found[0][name]) for one in found), f"{name} differs between processes"
        if not (name.endswith("stored") or name.startswith(BY_BATCH)):  # eigenvectors have a sign each
            error = (found[0][name] - value).norm() / value.norm()
            assert error < TOLERANCE, f"{name}: {error}"
