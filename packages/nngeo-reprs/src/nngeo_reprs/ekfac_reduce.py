"""PMatEKFACReduce: EKFAC for layers whose outputs are averaged over positions."""

from nngeo_core.layers.collection import LayerCollection
from nngeo_reprs.ekfac import PMatEKFAC
from nngeo_reprs.ekfac_sums import EKFACAccumulator
from nngeo_reprs.reduced import without_tables

__all__ = ["PMatEKFACReduce"]


class EKFACReduceAccumulator(EKFACAccumulator):
    """Sums the factors of Jacobians whose positions were made one, then their squares."""

    reduced = True


class PMatEKFACReduce(PMatEKFAC):
    """Each layer's block in the eigenbasis of its factors of `PMatKFACReduce`, its eigenvalues corrected as in EKFAC.

    The eigenvalues are the second moments, in that basis, of the Jacobians whose inputs were averaged over positions and
    whose gradients were summed: those of F where `PMatKFACReduce` is exact but for the dependence of inputs and gradients,
    as under an average over positions at the end. (The Jacobians as they are have parts outside the span of the averaged
    inputs, where the factors have no eigenvectors of their own, so that their moments would depend on rounding; `PMatEKFAC`
    has the exact trace.) Sources: George et al. (2018) for the eigenvalues, Eschenhagen et al. (2023) for the factors.

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
