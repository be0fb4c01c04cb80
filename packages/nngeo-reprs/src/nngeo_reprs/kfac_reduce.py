"""PMatKFACReduce: KFAC for layers whose outputs are averaged over positions."""

from nngeo_core.layers.collection import LayerCollection
from nngeo_reprs.ekfac_reduce import PMatEKFACReduce
from nngeo_reprs.kfac import PMatKFAC
from nngeo_reprs.kfac_sums import KFACAccumulator
from nngeo_reprs.reduced import without_tables

__all__ = ["PMatKFACReduce"]


class KFACReduceAccumulator(KFACAccumulator):
    """Sums the factors of Jacobians whose positions were made one."""

    reduced = True


class PMatKFACReduce(PMatKFAC):
    """Each layer's block as G (x) A, its shared positions made one first (Eschenhagen et al. 2023, KFAC-reduce).

    A = (1/n) sum_i abar abar^T for the average abar = (1/s) sum_s a of an example's inputs over the positions, with the
    constant input 1 of a bias, and G = (1/n) sum_i sum_c gsum gsum^T for the sum gsum = sum_s g of its output gradients; with
    a mask, over the positions that count. Exact for a linear layer whose outputs are averaged over positions, as in a deep
    linear network with pooling at the end, where `PMatKFAC` ("expand") is not; without shared positions the two are the
    same. The mean of one-hot inputs has no diagonal factor, so tables that look several rows up raise: use "kfac" for those.

    `data` is that of `PMatKFAC`; inverses and sums with c I are `PMatEKFACReduce`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nngeo_core import FIM
        >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Flatten(), nn.AvgPool1d(4))
        >>> x = torch.ones(5, 4, 2)  # 4 positions that all read the same
        >>> FIM(model, x, "kfac-reduce", variant="regression").data["0"].inputs
        tensor([[[1., 1.],
                 [1., 1.]]])
    """

    name = "kfac-reduce"
    exact_entries = ""
    accumulator = KFACReduceAccumulator
    exact_entries = ""  # unlike KFAC's, its factors are not those that `verify` computes

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> dict[str, int | None]:
        """As for `PMatKFAC`; of a table, only a batch can tell."""
        return without_tables(super().stored_numbers(layers), layers)

    def _eigen_kind(self) -> type[PMatEKFACReduce]:
        return PMatEKFACReduce
