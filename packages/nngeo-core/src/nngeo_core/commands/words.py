"""What the commands have in common: words of the command line, and how they end."""

import argparse
import sys
from pathlib import Path

__all__ = ["failed", "in_a_folder"]


def failed(command: str, error: Exception, status: int) -> int:
    """Say on standard error why a command ended, and return its exit status."""
    print(f"nngeo {command}: error: {error}", file=sys.stderr)
    return status


def in_a_folder(text: str) -> Path:
    """The path, if its folder exists: that is known before hours of computing.

    Raises:
        ArgumentTypeError: It does not exist.
    """
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to")
    return path
