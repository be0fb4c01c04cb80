"""What goes wrong among several processes ends on all of them, says where, and leaves checkpoints to go on from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nngeo import FIM, DistributedError, FIM_MonteCarlo

from .distributed_work import data, model, shard
from .processes import Failure, run

SCRIPT = "distributed_faults.py"


def of(name: str, *arguments: str, size: int = 3, timeout: float = 60) -> list[Any]:
    return run(SCRIPT, name, size, *arguments, timeout=timeout)


def succeeded(name: str, *arguments: str, size: int = 3, timeout: float = 60) -> list[Any]:
    found = of(name, *arguments, size=size, timeout=timeout)
    assert [one for one in found if isinstance(one, Failure)] == []
    return found


@pytest.fixture(scope="module")
def sound() -> list[dict[str, Any]]:
    """What three processes that stay alive make of everything."""
    return succeeded("sound")


DIFFERENCES = {
    "decay": "an update: processes 0 and 1 are not about the same computation; it differs in the decay",
    "parameters": "it differs in the parameters and buffers: ",
    "dtype": "it differs in the dtypes (0.weight): torch.float32 there, torch.float64 here",
    "layers": "it differs in the layers: nothing there, ['2', 'LinearLayer(",
    "representation": "it differs in the representations: PMatDense there, PMatDiag here",
    "stored": "it differs in the representations: PMatImplicit there, PMatDiag here",
    "likelihood": "it differs in the likelihood (class): nngeo_core.likelihoods.gaussian.GaussianLikelihood there",
    "verb": "it differs in the representations: FMatDense there, PMatDiag here",
    "Hessian": "it differs in the representations: Hessian PMatDense there, PMatDiag here",
    "vector": "DistributedError: the vector of a product is not the same on all 3 processes",
    "operation": "the processes are at different operations: process 0 at 'the vector of a product', process 1 at",
    "padding": "ValueError: DistributedSampler repeats 1 of 11 examples to make 3 shards of one length",
    "no examples": "ValueError: no examples: list is empty",
    "nothing": "nothing",
}
"""What all processes raise."""
FAILURES = {
    "unknown": (
        "PluginError: unknown pmat representation 'no such'",
        "the start ends on all processes, because process 1",
    ),
    "bad batch": (
        "RuntimeError: mat1 and mat2",
        "DiagAccumulator: pass 1/1 ends on all processes, because process 1 raised",
    ),
    "bad batch of a kernel": ("RuntimeError: mat1 and mat2", "because process 1 raised RuntimeError: mat1 and mat2"),
    "bad batch of a product": ("RuntimeError: mat1 and mat2", "because process 1 raised RuntimeError: mat1 and mat2"),
    "broken loader": (
        "OSError: the disk is gone",
        "reading the examples ends on all processes, because process 1 raised OSError",
    ),
    "broken loader of a map": ("OSError: the disk is gone", "because process 1 raised OSError"),
    "dropout": (
        "UnsupportedLayerError: '1' (Dropout)",
        "because process 1 raised UnsupportedLayerError: '1' (Dropout)",
    ),
}
"""What process 1 raises, and what the others do."""


def test_what_processes_do_differently_ends_on_all_of_them(sound: list[dict[str, Any]]) -> None:
    found = [one["disagreements"] for one in sound]
    assert set(found[0]) == {*DIFFERENCES, *FAILURES}
    for rank, messages in enumerate(found):
        for name, expected in DIFFERENCES.items():
            assert expected in messages[name], (rank, name, messages[name])
        for name, (own, others) in FAILURES.items():
            assert (own if rank == 1 else others) in messages[name], (rank, name, messages[name])
            assert messages[name].startswith("DistributedError") == (rank != 1), (rank, name, messages[name])


def test_monte_carlo_draws_differ_between_processes_and_are_the_same_again(sound: list[dict[str, Any]]) -> None:
    found = [one["draws"] for one in sound]
    for one in found:
        assert torch.equal(one["again"], one["seed 1"])
        assert torch.equal(one["seed 1"], found[0]["seed 1"])
        assert one["seeds"] == found[0]["seeds"]
    rows = found[0]["seed 1"].view(3, 2, -1) * 3**0.5  # of 6 examples, no longer of 2
    assert torch.allclose(rows[0], found[0]["alone"], rtol=1e-12)
    assert not any(torch.allclose(rows[0], rows[rank]) for rank in (1, 2))
    assert not torch.allclose(rows[1], rows[2])
    assert not torch.equal(found[0]["seed 1"], found[0]["seed 2"])
    batch = tuple(part[:2] for part in data())
    source = torch.Generator().manual_seed(1)
    alone = FIM_MonteCarlo(model(), batch, "lowrank", generator=source).data
    assert torch.equal(alone, found[0]["alone"])


def test_distributed_data_parallel_is_taken_off_and_fsdp_refused(sound: list[dict[str, Any]]) -> None:
    for one in [one["wrapped"] for one in sound]:
        assert one["the same"] == [True, True, True]
        assert one["layers"] == ["0.0", "0.2", "1"]
        assert "calls the DistributedDataParallel around the model" in one["function"]
        assert "is sharded by FSDP: no process holds whole parameters" in one["FSDP"]
        for refused in one["FSDP, with a collection"]:
            assert "FSDP: no process holds whole parameters" in refused


def test_sums_of_a_third_party_that_only_merge(sound: list[dict[str, Any]]) -> None:
    x, _ = data()
    generator = FIM(model(), x, "diag").generator
    jacobian = generator.jacobian(x).to_dense({k: v.numel() for k, v in generator.layer_collection.items()})
    for largest, n in [one["third_party"] for one in sound]:
        assert torch.allclose(largest, jacobian.square().amax((0, 1)), rtol=1e-12)
        assert n == 11


def expected_matrix(batches: list[Any]) -> Tensor:
    return FIM(model(), batches, "ekfac").get_dense_tensor()


def check_resumed(folder: Path, shards: str, fewer_than: int | None) -> None:
    found = succeeded("resumed", str(folder), shards)
    expected = expected_matrix([batch for rank in range(3) for batch in shard(3, rank)])
    for matrix, added, left in found:
        assert torch.equal(matrix, found[0][0])
        assert torch.allclose(matrix, expected, rtol=1e-11, atol=1e-13)
        assert left == []
        assert fewer_than is None or added < fewer_than, "nothing was taken over from the checkpoint"


@pytest.mark.parametrize(("end", "number", "place"), [("dies", 2, "1/2"), ("fails", 5, "2/2"), ("hangs", 5, "2/2")])
def test_a_process_that_ends_stops_the_others_and_leaves_checkpoints(
    end: str, number: int, place: str, tmp_path: Path
) -> None:
    found = of("faults", str(tmp_path), end, str(number), timeout=6)
    for rank in (0, 2):
        met, seconds = found[rank]
        if end == "fails":
            reason = "because process 1 raised OSError: the disk is gone"
            assert met == f"DistributedError: EKFACAccumulator: pass {place} ends on all processes, {reason}"
        else:
            assert met.startswith(f"DistributedError: EKFACAccumulator: pass {place} failed on process {rank} of 3: ")
        assert seconds < 40
    check_resumed(tmp_path, "announced", fewer_than=2 * 4)


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_process_dies_between_two_passes(how: str, tmp_path: Path) -> None:
    found = of("between_passes", str(tmp_path), how)
    assert isinstance(found[1], Failure)
    assert all("failed on process" in found[rank] for rank in (0, 2))
    check_resumed(tmp_path, "mine", fewer_than=6)


def test_a_process_dies_when_some_have_removed_their_files(tmp_path: Path) -> None:
    x, y = data()
    found = of("at_the_end", str(tmp_path), size=2)
    assert isinstance(found[1], Failure)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1.safetensors"]
    again = succeeded("resumed", str(tmp_path), "mine", size=2)
    expected = expected_matrix(list(zip(x.split(3), y.split(3), strict=True)))
    assert all(torch.allclose(matrix, expected, rtol=1e-11, atol=1e-13) for matrix, _, _ in again)
    assert [left for _, _, left in again] == [[], []]


def test_some_of_the_processes_compute_without_the_others(sound: list[dict[str, Any]]) -> None:
    found = [one["some"] for one in sound]
    whole = FIM(model(), data(), "dense").data
    for one in found:
        assert torch.allclose(one["alone"], whole, rtol=1e-12)
        assert torch.allclose(one["product"], whole.sum(1), rtol=1e-10, atol=1e-13)
    assert found[1]["outside"].startswith("ValueError: process 1 is none of the given process_group")
    for rank in (0, 2):
        assert torch.allclose(found[rank]["pair"], whole, rtol=1e-12, atol=1e-14)  # the other process has no examples
        matrix, n = found[rank]["update"]
        assert torch.allclose(matrix, whole, rtol=1e-12, atol=1e-14)
        assert (n, found[rank]["local"]) == (22, 33)
        assert "the matrix to update, by its 'data', is not the same on all 2 processes" in found[rank]["different"]
        assert found[rank]["after it"] is None, "a refused update holds for later ones"


def test_no_process_group() -> None:
    with pytest.raises(DistributedError, match=r"start the processes with torchrun, and call torch.distributed.init"):
        FIM(model(), data(), "diag", distributed=True)


def test_the_bytes_that_are_exchanged(sound: list[dict[str, Any]]) -> None:
    d, widths, size = 27, ((5, 3), (4, 3)), 8  # (A + 1, G) of both layers, bytes of a number
    factors = sum(a * a + g * g for a, g in widths)
    rows = sum(min(2 * n, d) for n in (6, 5))  # K - 1 directions
    expected = {
        "dense": {"sum": d * d * size},
        "blockdiag": {"sum": sum((a * g) ** 2 for a, g in widths) * size},
        "diag": {"sum": d * size},
        "quasidiag": {"sum": (d + sum((a - 1) * g for a, g in widths)) * size},
        "kfac": {"sum": (factors + 1) * size},
        "ekfac": {"sum": (factors + 1 + d) * size, "broadcast": (factors + sum(map(sum, widths))) * size},
        "kfac, decomposed": {"broadcast": (factors + sum(map(sum, widths))) * size},
        "lowrank": {"gather": rows * d * size},
        "implicit": {"sum": d * size},
        "centred": {"sum": 2 * d * size},
        "Jacobian": {"gather": 3 * 11 * d * size},
        "implicit kernel": {"sum": d * size, "gather": 3 * 11 * size},
        "Hessian": {"sum": d * size},
    }
    found = [one["traffic"] for one in sound]
    for rank, one in enumerate(found):
        for name, bytes_of in expected.items():
            assert {kind: count for kind, count in one[name].items() if kind != "status"} == bytes_of, (rank, name)
            assert one[name]["status"] < 3000
        n = (6, 0, 5)[rank]  # what a process captures of its examples goes to one other, each tensor padded to 64 bytes
        ring = sum(-(-n * k * size // 64) * 64 for a, g in widths for k in (a - 1, 3 * g))
        for name, numbers in (("Gram", (3 * 11) ** 2), ("Gram blockdiag", 3 * 11**2), ("Gram trace", 11**2)):
            assert (one[name].get("ring", 0), one[name]["sum"]) == (max(1, ring), numbers * size)
