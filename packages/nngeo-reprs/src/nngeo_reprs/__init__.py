"""nngeo-reprs: representations of matrices in parameter space."""

from nngeo_reprs.dense import PMatDense
from nngeo_reprs.diag import PMatDiag
from nngeo_reprs.kfac import PMatKFAC

__all__ = ["PMatDense", "PMatDiag", "PMatKFAC"]
__version__ = "0.1.0"
