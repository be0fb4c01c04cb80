"""The errors that nngeo raises on purpose.

Arguments of the wrong kind or value raise plain `TypeError` and `ValueError`; the classes here tell apart what a caller may
want to handle. Each message says what was given, what was expected, and what to call instead.
"""

__all__ = [
    "ConvergenceError",
    "DistributedError",
    "LayerCollectionMismatchError",
    "NNGeoError",
    "NonFiniteError",
    "NotPositiveDefiniteError",
    "PluginError",
    "ShapeError",
    "StorageError",
    "UnsupportedLayerError",
    "UnsupportedOperationError",
]


class NNGeoError(Exception):
    """Base of every error below."""


class ShapeError(NNGeoError, ValueError):
    """A tensor does not have the shape that the operation needs."""


class LayerCollectionMismatchError(NNGeoError, ValueError):
    """Two objects describe different sets of layers."""


class UnsupportedLayerError(NNGeoError, NotImplementedError):
    """The derivative with respect to a module's parameters cannot be computed exactly."""


class UnsupportedOperationError(NNGeoError, NotImplementedError):
    """The operation has no exact result in this representation."""


class NonFiniteError(NNGeoError, ArithmeticError):
    """A NaN or an infinity was met."""


class NotPositiveDefiniteError(NNGeoError, ArithmeticError):
    """A damped matrix is singular or indefinite to working precision."""


class ConvergenceError(NNGeoError, ArithmeticError):
    """An iteration ended before it was as accurate as asked."""


class PluginError(NNGeoError):
    """A plugin is missing, broken, in conflict with another one, or unknown by the name that was given."""


class DistributedError(NNGeoError, RuntimeError):
    """Several processes share a computation, and one of them has failed, is gone, or computes something else."""


class StorageError(NNGeoError):
    """A file is damaged, foreign, newer than this release, about something else, or could not be written."""
