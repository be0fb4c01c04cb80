"""What `--target module:function` means: a function of the user's that returns what a command works on."""

import sys
from importlib import import_module
from typing import Any

__all__ = ["called"]


def called(target: str) -> Any:
    """What the function returns, called without arguments; modules of the working directory are found too.

    Args:
        target: Such as `"package.module:function"`.

    Raises:
        ValueError: It is not of this form, or the module has no such function.
        ImportError: There is no such module, or it cannot be imported.

    Example:
        >>> called("platform:system") in ("Linux", "Darwin", "Windows")
        True
    """
    module, _, name = target.partition(":")
    if not module or not name:
        raise ValueError(f"a target is written module:function, got {target!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    found = getattr(import_module(module), name, None)
    if not callable(found):
        raise ValueError(f"module {module!r} has no function {name!r}")
    return found()
