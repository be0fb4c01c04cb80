"""The representations that nngeo-reprs registers."""

from nngeo_core.matrices.pmat import PMat
from nngeo_core.plugins import hookimpl
from nngeo_reprs.dense import PMatDense
from nngeo_reprs.diag import PMatDiag
from nngeo_reprs.kfac import PMatKFAC

__all__ = ["nngeo_representations"]


@hookimpl
def nngeo_representations() -> list[type[PMat]]:
    """Representations by name: `dense`, `diag`, `kfac`."""
    return [PMatDense, PMatDiag, PMatKFAC]
