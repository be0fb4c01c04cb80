"""The libraries compared, each imported when it is first asked for."""

from collections.abc import Callable
from importlib import import_module


def _lazy(module: str, name: str) -> Callable[[], type]:
    return lambda: getattr(import_module(f"benchmarks.peers.{module}"), name)  # type: ignore[no-any-return]


LIBRARIES: dict[str, Callable[[], type]] = {
    "nngeo": _lazy("ours", "Ours"),
    "NNGeometry": _lazy("nngeometry_adapter", "NNGeometry"),
    "curvlinops": _lazy("curvlinops_adapter", "Curvlinops"),
    "BackPACK": _lazy("backpack_adapter", "BackPACK"),
    "torch.func": _lazy("torch_func_adapter", "TorchFunc"),
}
