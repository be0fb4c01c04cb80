"""Function space: finite-width neural tangent kernels and the maps between parameters and outputs."""

__version__ = "0.1.0"

__all__: list[str] = []
