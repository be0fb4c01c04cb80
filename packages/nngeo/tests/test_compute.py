"""`nngeo compute`, in one process and under torchrun."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nngeo import FIM, GGN, FIM_MonteCarlo, PMat
from nngeo_core.cli import main

from .distributed_work import data, model

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are looked for in the working directory; nothing says that there are other processes."""
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def computed(folder: Path, target: str, *words: str) -> Any:
    output = folder / "F.safetensors"
    assert (
        main(["compute", "--target", f"compute_target:{target}", "--output", str(output), "--no-progress", *words]) == 0
    )
    return PMat.load(output)


def test_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    F = computed(tmp_path, "shards", "--representation", "ekfac", "--checkpoint", str(tmp_path / "sums"))
    x, y = data()
    assert torch.allclose(F.get_dense_tensor(), FIM(model(), (x, y), "ekfac").get_dense_tensor(), rtol=1e-11)
    assert capsys.readouterr().out.startswith("PMatEKFAC(27 x 27, 11 examples, classif_logits")
    assert list((tmp_path / "sums").iterdir()) == []


def test_other_verbs(tmp_path: Path) -> None:
    x, y = data()
    drawn = computed(tmp_path, "whole", "--representation", "dense", "--trials", "2", "--seed", "5")
    expected = FIM_MonteCarlo(model(), (x, y), "dense", trials=2, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(drawn.get_dense_tensor(), expected.get_dense_tensor(), rtol=1e-11)
    curvature = computed(tmp_path, "named", "--representation", "diag", "--verb", "GGN")
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    assert torch.allclose(curvature.get_diag(), GGN(model(), (x, y), "diag", loss=loss).get_diag(), rtol=1e-11)


WRONG = {
    "no_such:function": (2, "No module named 'no_such'"),
    "compute_target:no_such": (2, "module 'compute_target' has no function 'no_such'"),
    "compute_target": (2, "a target is written module:function, got 'compute_target'"),
    "compute_target:wrong": (2, "the target returns (model, loader), (model, loader, options) or a mapping"),
}


@pytest.mark.parametrize("target", WRONG)
def test_wrong_targets(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--representation", "diag", "--output", str(tmp_path / "F.safetensors")]
    status, text = WRONG[target]
    assert main(["compute", "--target", target, *words]) == status
    assert text in capsys.readouterr().err


def test_wrong_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "F.safetensors")
    assert main(["compute", "--target", "compute_target:whole", "--representation", "no such", "--output", output]) == 1
    assert "nngeo compute: error: unknown pmat representation 'no such'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compute", "--target", "a:b", "--representation", "diag", "--output", str(tmp_path / "no" / "F")])
    assert "there is no folder" in capsys.readouterr().err


def torchrun(folder: Path, target: str) -> "subprocess.CompletedProcess[str]":
    run = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--log-dir", str(folder / "logs")]
    words = ["compute", "--target", f"compute_target:{target}", "--representation", "ekfac"]
    words += [
        "--output",
        str(folder / "F.safetensors"),
        "--checkpoint",
        str(folder / "sums"),
        "--checkpoint-every",
        "1",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", *run, "-m", "nngeo", *words]
    return subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True, timeout=240, check=False)


def test_torchrun(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "shards")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PMatEKFAC(27 x 27, 11 examples") == 1
    assert "PMatEKFAC: pass 1/2: 100%" in done.stderr
    assert "pass 2/2: 100%" in done.stderr
    F = PMat.load(tmp_path / "F.safetensors")
    assert torch.allclose(F.get_dense_tensor(), FIM(model(), data(), "ekfac").get_dense_tensor(), rtol=1e-11)
    assert list((tmp_path / "sums").iterdir()) == []


def test_torchrun_with_a_target_that_knows_of_no_other_processes(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "whole")
    assert done.returncode != 0
    assert (
        "processes 0 and 1 of 2 begin with the same batch; the target returns the examples of its process"
        in done.stderr
    )
    assert not (tmp_path / "F.safetensors").exists()


def test_torchrun_with_a_target_that_fails_on_one_process(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "broken")
    assert done.returncode != 0
    told = "nngeo compute: error: calling the target ends on all processes, because process 1 raised ValueError: the target"
    assert told in done.stderr
    assert not (tmp_path / "F.safetensors").exists()
