"""What the documentation says is true: its code runs and prints what it shows, its links lead somewhere."""

import ast
import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import nngeo
from nngeo_core import errors

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md")])
SETUP = [
    "python -m pip install nox && python -m nox -s quickstart",
    "python -m pip install nox && python -m nox -s tests",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
SESSIONS = re.findall(r"^@nox\.session.*\ndef (\w+)", (ROOT / "noxfile.py").read_text("utf-8"), re.MULTILINE)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def shown_output(lines: list[str], node: ast.stmt) -> list[str]:
    """The comment at the end of a statement, or the comment lines beneath it."""
    assert node.end_lineno is not None and node.end_col_offset is not None
    last = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
    comments = [last] if last.strip() else []
    for line in lines[node.end_lineno :] if not comments else []:
        if not line.startswith("#"):
            break
        comments.append(line)
    return [comment.strip().removeprefix("#").strip() for comment in comments]


def statements(code: str) -> Iterator[tuple[ast.Module, list[str]]]:
    """Each top-level statement of a block with the output shown for it, which is in comments."""
    lines = code.splitlines()
    for node in ast.parse(code).body:
        yield ast.Module([node], []), shown_output(lines, node)


@pytest.fixture
def default_dtype() -> Iterator[None]:
    """Restores what a page may change."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=relative)
def test_examples_run_and_print_what_they_show(page: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}  # one for all blocks of a page
    for code in blocks(page, "python"):
        for statement, shown in statements(code):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(statement, relative(page), "exec"), namespace)
            if printed.getvalue():
                assert [line.strip() for line in printed.getvalue().splitlines()] == shown


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_to_files(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_sets_up_with_two_commands_before_it_mentions_any_other() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    mentions = [line for line in lines if re.search(r"\b(install|nox|pip -)", line)]
    assert mentions[:2] == SETUP
    assert blocks(ROOT / "README.md", "") == [f"{command}\n" for command in SETUP]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_name_what_there_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {name for names in re.findall(r"\bnox -s ((?:[a-z_]+\b ?)+)", text) for name in names.split()[:1]}
    scripts = re.findall(r"python (\w[\w/]*\.py)", text) + re.findall(r"(?<= )\./packages/[\w-]+", text)
    modules = [f"{module.replace('.', '/')}" for module in re.findall(r"python -m (benchmarks[.\w]*)", text)]
    assert named - set(SESSIONS) == set()
    assert [name for name in scripts if not (ROOT / name).exists()] == []
    assert [
        name for name in modules if not any((ROOT / f"{name}{end}").exists() for end in (".py", "/__main__.py"))
    ] == []


def test_ci_runs_every_session_but_those_that_are_asked_for() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    run = {name for names in re.findall(r"nox -s ([a-z_ ]+)", script) for name in names.split()}
    asked_for = {"bench_compare", "bench_publish", "develop", "minimums", "paper", "peers"}
    assert run == {name for name in SESSIONS if name not in asked_for}


def test_contributing_has_every_session() -> None:
    named = re.findall(r"nox -s (\w+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert set(named) == set(SESSIONS) - {"bench_compare", "bench_publish"}


def test_the_page_of_errors_has_every_class() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted([*rows, "NNGeoError"]) == errors.__all__
    assert [name for name in rows if f"## {name}" not in page or f"# {name}" not in page] == []


def test_the_new_names_of_the_migration_page_exist() -> None:
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| NNGeometry \| nngeo \|\n(.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    for row in table.splitlines()[2:]:
        for name in re.findall(r"`(\w+)(?:\.(\w+))?", row.split("|")[2]):
            assert not name[1] or hasattr(getattr(nngeo, name[0]), name[1])
            assert hasattr(nngeo, name[0])
