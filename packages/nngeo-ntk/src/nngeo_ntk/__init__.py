"""The place of function space: in this release, the plugin module that kernels and maps will register in."""

__version__ = "0.1.0"

__all__: list[str] = []
