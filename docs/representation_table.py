"""Writes the table of operations in representations.md, by trying each of them on each registered representation.

Run it after a change of representations; a test compares the page with what it would write.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nngeo import FIM, PMat, PMatEye, UnsupportedOperationError, random_pvector
from nngeo_core.plugins import registry

PAGE = Path(__file__).with_name("representations.md")
START, END = "<!-- what follows is written by representation_table.py -->\n", "<!-- until here -->\n"

Operation = Callable[[PMat, PMat], Any]

OPERATIONS: dict[str, Operation] = {
    "`mv(v)`, `@`": lambda M, other: M @ _vector(M),
    "`vTMv(v)`": lambda M, other: M.vTMv(_vector(M)),
    "`trace()`": lambda M, other: M.trace(),
    "`norm()`": lambda M, other: M.norm(),
    "`norm(2)`": lambda M, other: M.norm(2),
    "`norm(-2)`": lambda M, other: M.norm(-2),
    "`norm_per_layer()`": lambda M, other: M.norm_per_layer(),
    "`get_diag()`": lambda M, other: M.get_diag(),
    "`get_dense_tensor()`": lambda M, other: M.get_dense_tensor(),
    "`solve(v, regul)`": lambda M, other: M.solve(_vector(M), 0.1),
    "`inverse(regul)`": lambda M, other: M.inverse(0.1),
    "`pinv()`": lambda M, other: M.pinv(),
    "`sqrt()`": lambda M, other: M.sqrt(),
    "`mm(other)`, `M @ other`": lambda M, other: M @ other,
    "`+`, `-` own kind": lambda M, other: M + other,
    "`+ c I`": lambda M, other: M + PMatEye(layer_collection=M.layer_collection, scaling=0.5),
    "`* c`": lambda M, other: M * 2.0,
    "`eigendecomposition()`": lambda M, other: _either(M.eigendecomposition, lambda: M.eigendecomposition(2)),
    "`logdet(regul)`": lambda M, other: M.logdet(10.0),
    "`sample(regul)`": lambda M, other: M.sample(10.0, torch.Generator().manual_seed(0)),
    "`to(dtype)`": lambda M, other: M.to(torch.float32),
    "`update(examples, decay)`": lambda M, other: (M * 1.0).update(_examples(3), 0.9),
    '`convert("dense")`': lambda M, other: M.convert("dense"),
    '`convert("blockdiag")`': lambda M, other: M.convert("blockdiag"),
    '`convert("diag")`': lambda M, other: M.convert("diag"),
}


def main() -> None:
    """Rewrite the table."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, after = split(text)
    PAGE.write_text(before + table() + after, encoding="utf-8")


def split(text: str) -> tuple[str, str, str]:
    """What is before the table in a page, the table, and what is after it."""
    start, end = text.index(START) + len(START), text.index(END)
    return text[:start], text[start:end], text[end:]


def table() -> str:
    """The table of all registered representations, and under it why operations are refused."""
    matrices = {name: _pair(name) for name in registry.names("representations")}
    reasons: dict[str, int] = {}
    lines = [_row(["", *(f"`{name}`" for name in matrices)]), _row(["---", *("---" for _ in matrices)])]
    for label, run in OPERATIONS.items():
        lines.append(_row([label, *(_cell(run, *pair, reasons) for pair in matrices.values())]))
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(["", *lines, "", "Why not, in the words of the errors:", "", *notes, "", ""])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(run: Operation, matrix: PMat, other: PMat, reasons: dict[str, int]) -> str:
    """Yes; the name of the representation that the result is of, if it is another one; or the number of the reason."""
    try:
        found = run(matrix, other)
    except UnsupportedOperationError as error:
        return f"no ({reasons.setdefault(_shortened(error), len(reasons) + 1)})"
    return f"`{found.name}`" if isinstance(found, PMat) and found.name != matrix.name else "yes"


def _shortened(error: Exception) -> str:
    return re.sub(r"^in the \w+ of [^:]+: ", "", str(error))


def _either(first: Callable[[], Any], second: Callable[[], Any]) -> Any:
    """The first, or where that is not defined the second: all eigenvalues, or some."""
    try:
        return first()
    except UnsupportedOperationError:
        return second()


def _pair(name: str) -> tuple[PMat, PMat]:
    """A small network's matrices on two batches."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return FIM(model, _examples(1), name), FIM(model, _examples(2), name)


def _examples(seed: int) -> torch.Tensor:
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _vector(matrix: PMat) -> Any:
    generator = torch.Generator().manual_seed(0)
    return random_pvector(matrix.layer_collection, dtype=matrix.dtype, generator=generator)


if __name__ == "__main__":
    main()
