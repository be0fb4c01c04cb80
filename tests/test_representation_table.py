"""The table of operations in docs/representations.md is what the representations do."""

import re
from pathlib import Path
from runpy import run_path

import pytest

SCRIPT = run_path(str(Path(__file__).parents[1] / "docs" / "representation_table.py"))
PAGE = SCRIPT["PAGE"].read_text(encoding="utf-8")


def test_the_page_has_the_table_that_the_code_gives() -> None:
    assert SCRIPT["split"](PAGE)[1] == SCRIPT["table"](), "run python docs/representation_table.py"


@pytest.mark.parametrize("name", SCRIPT["registry"].names("representations"))
def test_the_page_says_what_each_representation_is(name: str) -> None:
    assert re.search(rf"^\| `{name}` \| `PMat\w+` \|", PAGE, re.MULTILINE)
