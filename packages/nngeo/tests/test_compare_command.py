"""``nngeo compare`` from beginning to end, and what it says to wrong words."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nngeo import RepresentationComparison
from nngeo_core.cli import main

TARGETS = """
import torch
from torch import nn

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
X = torch.randn(9, 3)
CHOICES = {"mine": {"0": "kfac", None: "dense"}}

def pair():
    return MODEL, X

def with_options():
    return MODEL, (X, X), {"variant": "regression", "vectors": 2, "representations": CHOICES, "function": lambda x, _: MODEL(x)}

def mapping():
    return {"model": MODEL, "loader": [X[:5], X[5:]]}

def wrong():
    return MODEL

def train():
    return MODEL.append(nn.Dropout()).train(), X

not_a_function = 3
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of targets."""
    (tmp_path / "targets.py").write_text(TARGETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "targets", raising=False)
    return tmp_path


def test_as_a_program_with_files_and_a_figure(project: Path) -> None:
    words = ["--target", "targets:pair", "--representations", "diag, kfac", "--trials", "3", "--vectors", "4"]
    words += [
        "--dampings",
        "0.5,0.1",
        "--seed",
        "1",
        "--output",
        "out.md",
        "--output",
        "out.json",
        "--figure",
        "out.png",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "nngeo_core", "compare", *words],
        env={**os.environ, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = RepresentationComparison.from_json((project / "out.json").read_text())
    assert (list(found.measurements), found.trials, found.n_vectors) == (["diag", "kfac"], 3, 4)
    assert (found.dampings, found.n_examples) == ((0.1, 0.5), 9)
    assert list(found.measurements["diag"].layers) == ["0", "2"]
    assert done.stdout == f"{found}\n"
    assert (project / "out.md").read_text() == found.to_markdown()
    assert (project / "out.png").read_bytes()[:4] == b"\x89PNG"


def run(*words: str) -> dict[str, Any]:
    """What the command writes as JSON."""
    assert main(["compare", *words, "--output", "out.json"]) == 0
    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    return found


@pytest.mark.usefixtures("project")
def test_options_of_the_target_and_those_that_come_before_them(capsys: pytest.CaptureFixture[str]) -> None:
    found = run("--target", "targets:with_options")
    assert (found["likelihood"], found["n_vectors"], list(found["measurements"])) == ("regression", 2, ["mine"])
    found = run("--target", "targets:with_options", "--vectors", "3", "--no-layers", "--representations", "diag")
    assert (found["likelihood"], found["n_vectors"], list(found["measurements"])) == ("regression", 3, ["diag"])
    assert found["measurements"]["diag"]["layers"] == {}
    assert capsys.readouterr().out.count("Recommendation: ") == 2


@pytest.mark.usefixtures("project")
def test_a_mapping_and_the_default_representations() -> None:
    found = run("--target", "targets:mapping", "--vectors", "2", "--layer-times", "--memory-budget", "1000000")
    assert list(found["measurements"]) == ["diag", "quasidiag", "kfac", "ekfac"]
    assert list(found["measurements"]["kfac"]["layer_times"]) == ["0", "2"]
    assert found["n_examples"] == 9


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["targets"], 2, "a target is written module:function, got 'targets'"),
        (["nowhere:pair"], 2, "No module named 'nowhere'"),
        (["targets:missing"], 2, "module 'targets' has no function 'missing'"),
        (["targets:not_a_function"], 2, "module 'targets' has no function 'not_a_function'"),
        (["targets:wrong"], 2, "returns (model, loader), (model, loader, options) or a mapping"),
        (["targets:pair", "--representations", "kfak"], 1, "unknown pmat representation 'kfak'"),
        (["targets:pair", "--vectors", "0"], 1, "at least 1; got 0"),
        (["targets:train"], 1, "call model.eval()"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(
    words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--target", *words]) == status
    said = capsys.readouterr().err
    assert said.startswith("nngeo compare: error: ")
    assert message in said


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: --target"),
        (["--target", "targets:pair", "--output", "out.txt"], "an output ends with .md or .json, got 'out.txt'"),
        (
            ["--target", "targets:pair", "--figure", "nowhere/out.png"],
            "there is no folder 'nowhere' to write 'out.png' to",
        ),
        (["--target", "targets:pair", "--dampings", "a"], "expected numbers with commas between them, got 'a'"),
    ],
)
def test_wrong_words_exit_before_anything_is_computed(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *words])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
