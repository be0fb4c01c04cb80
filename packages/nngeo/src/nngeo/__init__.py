"""Fisher information matrices of PyTorch models, and linear algebra with them whatever their representation.

Every public name of `nngeo_core`, `nngeo_generators`, `nngeo_ntk` and `nngeo_reprs` under one roof.
"""

import nngeo_core
import nngeo_generators
import nngeo_ntk
import nngeo_reprs
from nngeo_core import *
from nngeo_generators import *
from nngeo_ntk import *
from nngeo_reprs import *

__version__ = "0.1.0"

__all__ = sorted({*nngeo_core.__all__, *nngeo_generators.__all__, *nngeo_ntk.__all__, *nngeo_reprs.__all__})
