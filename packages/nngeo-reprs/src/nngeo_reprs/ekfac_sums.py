"""The sums that become EKFAC's eigenvalues: second moments of the Jacobians in a Kronecker basis."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.parallel.group import Group
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_reprs.kfac_sums import KFACAccumulator
from nngeo_reprs.kronecker_basis import EigenBlock, FactorSpectrum, KroneckerBasis, same_basis, shared_spectra, spectrum

__all__ = ["EKFACAccumulator", "EigenvalueAccumulator"]


class EigenvalueAccumulator(Accumulator):
    """Sums the squares of each layer's Jacobian in a basis that is given.

    Args:
        layer_collection: The parameters that the matrix is about.
        bases: One basis for each layer.
        reduced: Whether shared positions are made one first, as in EKFAC-reduce.
    """

    def __init__(
        self, layer_collection: LayerCollection, bases: Mapping[str, KroneckerBasis], reduced: bool = False
    ) -> None:
        super().__init__(layer_collection)
        self.bases = bases
        self.reduced = reduced

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add each layer's squares."""
        _add_squares(self, batch, self.bases, self.reduced)

    def finalize(self) -> dict[str, EigenBlock]:
        """Each layer's block, its eigenvalues averaged over examples."""
        return _blocks(self, self.bases)


class EKFACAccumulator(KFACAccumulator):
    """Sums the Kronecker factors in the first pass, and in the second the squares in their eigenbases.

    The bases are computed when the second pass begins, and are part of the state from then on: parts of the data that are
    summed apart and merged afterwards must all have begun it from the same state.
    """

    passes = 2

    def __init__(self, layer_collection: LayerCollection) -> None:
        super().__init__(layer_collection)
        self.bases: dict[str, KroneckerBasis] = {}

    def begin_pass(self, number: int) -> None:
        """The second pass starts with the eigenbases of the factors, or with those of a loaded state, and new sums.

        Raises:
            ValueError: The first pass saw no examples, or is over and cannot begin anew.
        """
        if number == 0 and self.bases:
            raise ValueError(
                "these sums are in their second pass, in a basis that is fixed; take new ones for a first pass"
            )
        if number == 1:
            if not (self.bases or self.sums):
                raise ValueError("no examples in the first pass, so that there is no basis for the second one")
            self.bases = self.bases or self._eigenbases()
            self.sums = {}
        super().begin_pass(number)

    def reduce_(self, group: Group, what: str) -> None:
        """Take in the sums of all processes; after the first pass, each decomposes some of the factors for all of them."""
        if self.bases:
            self._sum_over(group, what)
            return
        super().reduce_(group, what)
        if self.n_examples:
            with torch.inference_mode(False), torch.no_grad():
                spectra = shared_spectra(KFACAccumulator.finalize(self), group, f"{what}, eigendecompositions")
                self.bases = _bases(spectra)

    def _eigenbases(self) -> dict[str, KroneckerBasis]:
        with torch.inference_mode(False), torch.no_grad():
            factors = super().finalize()
            return _bases({layer_id: spectrum(found) for layer_id, found in factors.items()})

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add each layer's factors, then its squares."""
        if self.bases:
            _add_squares(self, batch, self.bases, self.reduced)
        else:
            super().accumulate(batch)

    def merge(self, other: Accumulator) -> None:
        """Add the sums of other examples.

        Raises:
            ValueError: The other ones are of another pass, or in another basis.
        """
        if isinstance(other, EKFACAccumulator) and not _same_bases(self.bases, other.bases):
            raise ValueError(
                "the second moments of EKFAC are in different eigenbases, or of different passes; merge the first pass of "
                "all parts, begin the second one there, and load its state into each part"
            )
        super().merge(other)

    def state_dict(self) -> dict[str, Tensor]:
        """The example count and the sums, where each layer's factors lie in its parameters, and the bases if there are any."""
        bases = {
            f"bases.{layer_id}.{name}": vectors.clone()
            for layer_id, basis in self.bases.items()
            for name, vectors in (("inputs", basis.inputs), ("outputs", basis.outputs))
            if vectors is not None
        }
        return {**super().state_dict(), **bases}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self.bases = {}
        for layer_id in self.layer_collection:
            if f"bases.{layer_id}.outputs" in state:
                inputs, outputs = state.get(f"bases.{layer_id}.inputs"), state[f"bases.{layer_id}.outputs"]
                layout = self.layouts.get(layer_id, KroneckerLayout(len(outputs), 1, 1, has_bias=False))
                self.bases[layer_id] = KroneckerBasis(
                    None if inputs is None else inputs.clone(), outputs.clone(), layout
                )

    def finalize(self) -> dict[str, EigenBlock]:  # type: ignore[override]
        """Each layer's block, its eigenvalues averaged over examples.

        Raises:
            ValueError: There was no second pass.
        """
        if not self.bases:
            raise ValueError(
                "EKFAC takes two passes over the data; call begin_pass(1), then update with the same examples"
            )
        return _blocks(self, self.bases)


def _bases(spectra: Mapping[str, FactorSpectrum]) -> dict[str, KroneckerBasis]:
    """The eigenvectors, in memory as those from a file: in another order products with them would round otherwise."""
    return {layer_id: found.basis.mapped(Tensor.contiguous) for layer_id, found in spectra.items()}


def _add_squares(sums: Accumulator, batch: JacobianBatch, bases: Mapping[str, KroneckerBasis], reduced: bool) -> None:
    for layer_id, jacobian in batch.layers.items():
        chosen = jacobian.reduced() if reduced else jacobian
        sums.add(layer_id, _squares(chosen, bases[layer_id]).to(batch.dtype))


def _squares(jacobian: LayerJacobian, basis: KroneckerBasis) -> Tensor:
    """The diagonal of J^T J in the basis, shape (q, G, A)."""
    q, outputs, width = basis.shape
    if outputs == width == 1:  # of a layer that the first pass never called: single parameters
        return jacobian.sum_of_squares().view(basis.shape)
    local = basis.mapped(lambda vectors: vectors.to(jacobian.device, jacobian.dtype))
    squares = jacobian.rotate(local.inputs, local.outputs).sum_of_squares()
    return basis.layout.to_matrix(squares) if basis.inputs is None else squares.view(basis.shape)


def _blocks(sums: Accumulator, bases: Mapping[str, KroneckerBasis]) -> dict[str, EigenBlock]:
    blocks = {}
    for layer_id, basis in bases.items():
        called = layer_id in sums.sums
        values = sums.average(layer_id) if called else basis.outputs.new_zeros(basis.shape)
        blocks[layer_id] = EigenBlock(basis.mapped(lambda vectors, values=values: vectors.to(values)), values)  # type: ignore[misc]
    return blocks


def _same_bases(first: Mapping[str, KroneckerBasis], second: Mapping[str, KroneckerBasis]) -> bool:
    return first.keys() == second.keys() and all(
        same_basis(basis, second[layer_id]) for layer_id, basis in first.items()
    )
