"""``nngeo plugins`` and ``python -m nngeo_core plugins``."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import nngeo_core.cli
from nngeo_core.cli import main
from nngeo_core.plugins import Registry

Install = Callable[..., None]

SOUND = """
class Striped:
    kind, name = "pmat", "striped"

@hookimpl
def nngeo_representations():
    return [Striped]
"""


def test_plugins_prints_every_plugin_with_its_state(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install("alpha", SOUND, version="0.2", entry="stripes")
    install("beta", "raise OSError('no disk')")
    install("gamma", "")
    monkeypatch.setenv("NNGEO_DISABLED_PLUGINS", "gamma")
    monkeypatch.setattr(nngeo_core.cli, "registry", Registry())
    assert main(["plugins"]) == 0
    assert capsys.readouterr().out == (
        "plugin   distribution  version  provides                     state\n"
        "stripes  alpha         0.2      pmat representation striped  loaded\n"
        "beta     beta          1.0      nothing                      failed with OSError: no disk\n"
        "gamma    gamma         1.0      nothing                      blocked by NNGEO_DISABLED_PLUGINS\n"
    )


def test_a_long_state_is_wrapped_in_its_column(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install("alpha", SOUND)
    install("beta", SOUND)
    monkeypatch.setattr(nngeo_core.cli, "registry", Registry())
    main(["plugins"])
    lines = capsys.readouterr().out.splitlines()
    column = lines[0].index("state")
    states = " ".join(line[column:].strip() for line in lines[1:])
    assert states.count("is provided by plugin 'alpha' of distribution alpha 1.0 and plugin 'beta'") == 2
    assert max(map(len, lines)) <= column + 44


def test_no_command_and_an_unknown_one_exit_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in [([], "required: COMMAND"), (["plugin"], "invalid choice: 'plugin'")]:
        with pytest.raises(SystemExit) as exit_:
            main(words)
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err


def test_the_module_runs_as_a_program(install: Install, tmp_path: Path) -> None:
    install("alpha", SOUND, version="0.2", entry="stripes")
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "nngeo_core", "plugins"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[:3] for line in done.stdout.splitlines() if "alpha" in line] == [["stripes", "alpha", "0.2"]]
