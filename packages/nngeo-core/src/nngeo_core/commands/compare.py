"""``nngeo compare``: `compare_representations` on what a function of the user's returns."""

import argparse
from pathlib import Path
from typing import Any

import torch

from nngeo_core.commands.target import called, options_of
from nngeo_core.commands.words import failed, in_a_folder
from nngeo_core.errors import NNGeoError
from nngeo_core.verbs.compare import compare_representations

__all__ = ["add_compare"]

_REPRESENTATIONS = ["diag", "quasidiag", "kfac", "ekfac"]
_OPTIONS = (
    *("representations", "variant", "trials", "vectors", "dampings"),
    *("memory_budget", "per_layer", "layer_times", "progress"),
)
"""Of `compare_representations`, that the command line may give."""
_DESCRIPTION = """\
Measure representations of the Fisher matrix of a model against the exact one, print tables and a recommendation.

The target is a function of yours that takes no arguments and returns (model, loader), (model, loader, options) or a mapping
of options with the keys model and loader among them; options are those of nngeo.compare_representations, such as
{"variant": "regression", "representations": {"mine": {nn.Linear: "kfac", None: "diag"}}}. What is given on the command line
comes before them."""


def add_compare(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    parser = commands.add_parser(
        "compare",
        help="measure representations on a model of yours against the exact matrix",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--target", required=True, metavar="MODULE:FUNCTION", help="what returns the model and the data")
    add("--representations", type=_names, metavar="NAMES", help=f"default: {','.join(_REPRESENTATIONS)}")
    add("--variant", metavar="NAME", help="the likelihood (default: classif_logits)")
    add("--trials", type=int, metavar="T", help="draw T targets for each example (default: none, the exact matrix)")
    add("--vectors", type=int, metavar="K", help="how many random vectors (default: 30)")
    add("--dampings", type=_numbers, metavar="R,R", help="values of r (default: around the mean eigenvalue)")
    add("--memory-budget", type=int, metavar="BYTES", help="what captured tensors may take together")
    add("--seed", type=int, metavar="N", help="of the vectors and the draws")
    add("--no-layers", action="store_const", const=False, dest="per_layer", help="leave out the figures within layers")
    add(
        "--layer-times",
        action="store_const",
        const=True,
        help="time each layer alone too: builds all once more for each",
    )
    add("--progress", action="store_const", const=True, help="show progress bars")
    add("--output", type=_output, action="append", default=[], metavar="FILE", help="write the result: .md or .json")
    add("--figure", type=in_a_folder, metavar="FILE", help="draw the result: .png, .pdf or what else matplotlib writes")
    parser.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    try:
        options = options_of(called(arguments.target))
    except (ImportError, ValueError) as error:
        return failed("compare", error, 2)
    given = {name: getattr(arguments, name) for name in _OPTIONS}
    options = {"representations": _REPRESENTATIONS, **options, **{k: v for k, v in given.items() if v is not None}}
    if arguments.seed is not None:
        options["generator"] = torch.Generator().manual_seed(arguments.seed)
    try:
        found = compare_representations(**options)
    except (NNGeoError, ValueError) as error:
        return failed("compare", error, 1)
    print(found)
    for path in arguments.output:
        path.write_text(found.to_json() if path.suffix == ".json" else found.to_markdown(), encoding="utf-8")
    if arguments.figure is not None:
        found.plot().savefig(arguments.figure)
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}") from error


def _output(text: str) -> Path:
    path = in_a_folder(text)
    if path.suffix not in (".md", ".json"):
        raise argparse.ArgumentTypeError(f"an output ends with .md or .json, got {text!r}")
    return path
