"""PMatEKFACReduce: EKFAC in the eigenbasis of KFAC-reduce."""

from nngeo_core.layers.collection import LayerCollection
from nngeo_reprs.ekfac import PMatEKFAC
from nngeo_reprs.ekfac_sums import EKFACAccumulator
from nngeo_reprs.reduced import without_tables

__all__ = ["PMatEKFACReduce"]


class EKFACReduceAccumulator(EKFACAccumulator):
    """Sums the factors of Jacobians whose positions were made one, then the squares of the Jacobians as they are."""

    reduced = True


class PMatEKFACReduce(PMatEKFAC):
    """Each layer's block in the eigenbasis of its factors of `PMatKFACReduce`, where its diagonal is that of F.

    Only the basis is that of the averaged inputs and summed gradients; the eigenvalues are second moments of the
    Jacobians themselves, the best ones for that basis in the Frobenius norm. Sources: George et al. (2018) for the
    eigenvalues, Eschenhagen et al. (2023) for the factors.

    `data` is that of `PMatEKFAC`.

    Example:
        >>> from nngeo_core import LayerCollection, LinearLayer
        >>> PMatEKFACReduce.stored_numbers(LayerCollection({"fc": LinearLayer(2, 3, bias=False)}))
        {'fc': 19}
    """

    name = "ekfac-reduce"
    accumulator = EKFACReduceAccumulator

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> dict[str, int | None]:
        """As for `PMatEKFAC`; of a table, only a batch can tell."""
        return without_tables(super().stored_numbers(layers), layers)
