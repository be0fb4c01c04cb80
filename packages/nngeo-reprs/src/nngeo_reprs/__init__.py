"""nngeo-reprs: representations of matrices in parameter space."""

from nngeo_reprs.block_diag import PMatBlockDiag
from nngeo_reprs.dense import PMatDense
from nngeo_reprs.diag import PMatDiag
from nngeo_reprs.ekfac import PMatEKFAC
from nngeo_reprs.ekfac_reduce import PMatEKFACReduce
from nngeo_reprs.eye import PMatEye
from nngeo_reprs.implicit import PMatImplicit
from nngeo_reprs.kfac import PMatKFAC
from nngeo_reprs.kfac_reduce import PMatKFACReduce
from nngeo_reprs.low_rank import PMatLowRank
from nngeo_reprs.mixed import PMatMixed
from nngeo_reprs.product import PMatProduct
from nngeo_reprs.quasi_diag import PMatQuasiDiag
from nngeo_reprs.sum import PMatSum

__all__ = [
    "PMatBlockDiag",
    "PMatDense",
    "PMatDiag",
    "PMatEKFAC",
    "PMatEKFACReduce",
    "PMatEye",
    "PMatImplicit",
    "PMatKFAC",
    "PMatKFACReduce",
    "PMatLowRank",
    "PMatMixed",
    "PMatProduct",
    "PMatQuasiDiag",
    "PMatSum",
]
__version__ = "0.1.0"
