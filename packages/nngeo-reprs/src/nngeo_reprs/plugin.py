"""The representations that nngeo-reprs registers."""

from nngeo_core.matrices.pmat import PMat
from nngeo_core.plugins import hookimpl
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
from nngeo_reprs.quasi_diag import PMatQuasiDiag

__all__ = ["nngeo_representations"]


@hookimpl
def nngeo_representations() -> list[type[PMat]]:
    """Representations by name, one file each."""
    return [
        PMatBlockDiag,
        PMatDense,
        PMatDiag,
        PMatEKFAC,
        PMatEKFACReduce,
        PMatEye,
        PMatImplicit,
        PMatKFAC,
        PMatKFACReduce,
        PMatLowRank,
        PMatMixed,
        PMatQuasiDiag,
    ]
