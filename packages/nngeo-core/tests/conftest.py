"""Fixtures of nngeo-core's tests."""

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts distributions on the path as pip would leave them; no other plugin is installed meanwhile.

    `install("foo", code)` makes distribution foo of one module, called foo too, with that code.
    """
    elsewhere = [path for path in sys.path if Path(path).name not in ("site-packages", "dist-packages")]
    monkeypatch.setattr(sys, "path", elsewhere)
    monkeypatch.delenv("NNGEO_DISABLED_PLUGINS", raising=False)
    before = set(sys.modules)

    def install(
        distribution: str, code: str, version: str = "1.0", entry: str = "", module: str = "", folder: str = "site"
    ) -> None:
        site, module = tmp_path / folder, module or distribution
        metadata = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (site / f"{module}.py").write_text(f"from nngeo_core.plugins import hookimpl\n{textwrap.dedent(code)}")
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[nngeo]\n{entry or distribution} = {module}\n")
        if str(site) not in sys.path:
            sys.path.append(str(site))
        importlib.invalidate_caches()

    yield install
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
