"""What `--target module:function` means: a function of the user's that returns what a command works on."""

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

__all__ = ["called", "options_of"]


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


def options_of(returned: Any) -> dict[str, Any]:
    """The keyword arguments that a target means.

    Raises:
        ValueError: It returned something else.
    """
    if isinstance(returned, Mapping) and {"model", "loader"} <= returned.keys():
        return dict(returned)
    if isinstance(returned, tuple) and len(returned) in (2, 3):
        model, loader, *rest = returned
        if not rest or isinstance(rest[0], Mapping):
            return {"model": model, "loader": loader, **(rest[0] if rest else {})}
    given = f"({', '.join(type(part).__name__ for part in returned)})" if isinstance(returned, tuple) else returned
    raise ValueError(
        "the target returns (model, loader), (model, loader, options) or a mapping with the keys 'model' and 'loader'; got "
        f"{given if isinstance(given, str) else type(given).__name__}"
    )
