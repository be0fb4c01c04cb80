"""The NNGeometry manual's other names for what nngeo has: the one place of names that only forward.

Code written for the original imports them; nngeo itself uses each thing's own name.
"""

from nngeo_core.layers.layer import Layer
from nngeo_core.matrices.pmat import PMat

__all__ = ["AbstractLayer", "PMatAbstract"]

AbstractLayer = Layer
PMatAbstract = PMat
