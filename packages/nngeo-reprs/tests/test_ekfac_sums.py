"""EKFACAccumulator: two passes whose sums merge, are stored, and go on."""

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import FIM, Generator, LayerCollection, LayerCollectionMismatchError, ParameterLayer, populate
from nngeo_core.testing import MODELS, relative_error
from nngeo_reprs import PMatEKFAC
from nngeo_reprs.ekfac_sums import EigenvalueAccumulator, EKFACAccumulator
from nngeo_reprs.kfac_sums import KFACAccumulator


@pytest.fixture
def whole() -> PMatEKFAC:
    case = MODELS["mlp"]()
    found = FIM(case.model, case.inputs, PMatEKFAC)
    assert isinstance(found, PMatEKFAC)
    return found


INPUTS = MODELS["mlp"]().inputs


def one_pass(sums: EKFACAccumulator, generator: Generator, number: int, inputs: Tensor) -> None:
    sums.begin_pass(number)
    add(sums, generator, inputs)


def add(sums: EKFACAccumulator, generator: Generator, inputs: Tensor) -> None:
    with torch.no_grad():
        for batch in generator.stream([inputs]):
            sums.update(batch)


def test_a_second_pass_goes_on_from_its_stored_state(whole: PMatEKFAC) -> None:
    assert whole.generator is not None
    sums, resumed = (EKFACAccumulator(whole.layer_collection) for _ in range(2))
    one_pass(sums, whole.generator, 0, INPUTS)
    one_pass(sums, whole.generator, 1, INPUTS[:3])
    resumed.load_state_dict(sums.state_dict())
    assert resumed.n_examples == 3
    add(resumed, whole.generator, INPUTS[3:])
    found = PMatEKFAC(data=resumed.finalize(), layer_collection=whole.layer_collection)
    assert relative_error(found.get_dense_tensor(), whole.get_dense_tensor()) <= 1e-12


def test_a_loaded_basis_is_kept_when_its_pass_begins(whole: PMatEKFAC) -> None:
    """What one process computed is what all others sum in."""
    assert whole.generator is not None
    first, second = (EKFACAccumulator(whole.layer_collection) for _ in range(2))
    one_pass(first, whole.generator, 0, INPUTS)
    first.begin_pass(1)
    second.load_state_dict(first.state_dict())
    one_pass(second, whole.generator, 1, INPUTS[:3])
    add(first, whole.generator, INPUTS[3:])
    second.merge(first)
    found = PMatEKFAC(data=second.finalize(), layer_collection=whole.layer_collection)
    assert relative_error(found.get_dense_tensor(), whole.get_dense_tensor()) <= 1e-12
    assert second.n_examples == len(INPUTS)


def test_parts_in_other_bases_or_passes_do_not_merge(whole: PMatEKFAC) -> None:
    assert whole.generator is not None
    first, second, third = (EKFACAccumulator(whole.layer_collection) for _ in range(3))
    for sums, inputs in ((first, INPUTS[:3]), (second, INPUTS[3:])):
        one_pass(sums, whole.generator, 0, inputs)
        one_pass(sums, whole.generator, 1, inputs)
    one_pass(third, whole.generator, 0, INPUTS)
    for other in (second, third):
        with pytest.raises(ValueError, match="in different eigenbases, or of different passes; merge the first pass"):
            first.merge(other)
    with pytest.raises(TypeError, match="EKFACAccumulator merges with its own kind, got KFACAccumulator"):
        first.merge(KFACAccumulator(whole.layer_collection))
    with pytest.raises(LayerCollectionMismatchError):
        third.merge(EKFACAccumulator(LayerCollection({"a": ParameterLayer((("weight", (2,)),))})))


def test_passes_in_order(whole: PMatEKFAC) -> None:
    assert whole.generator is not None
    sums = EKFACAccumulator(whole.layer_collection)
    with pytest.raises(ValueError, match="no examples in the first pass"):
        sums.begin_pass(1)
    one_pass(sums, whole.generator, 0, INPUTS)
    with pytest.raises(ValueError, match=r"EKFAC takes two passes over the data; call begin_pass\(1\)"):
        sums.finalize()
    one_pass(sums, whole.generator, 1, INPUTS)
    with pytest.raises(ValueError, match="in their second pass"):
        sums.begin_pass(0)


def test_eigenvalues_in_a_given_basis_take_one_pass(whole: PMatEKFAC) -> None:
    assert whole.generator is not None
    bases = {layer_id: block.basis for layer_id, block in whole.data.items()}
    sums = EigenvalueAccumulator(whole.layer_collection, bases)
    populate(whole.generator, iter([(INPUTS,)]), [sums])
    found = PMatEKFAC(data=sums.finalize(), layer_collection=whole.layer_collection)
    assert relative_error(found.get_dense_tensor(), whole.get_dense_tensor()) <= 1e-12


class Switched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.both = nn.Linear(3, 2), nn.Linear(3, 2), False

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.first(x) + (self.second(x) if self.both else 0)
        return outputs


def test_a_layer_that_wakes_up_has_its_diagonal() -> None:
    """Without factors it has no eigenvectors of its own, and unit vectors are as good as any."""
    model, x = Switched().double(), torch.randn(4, 3, dtype=torch.float64)
    matrix = FIM(model, x, PMatEKFAC, variant="regression")
    place = matrix.layer_collection.slices()["second"]
    assert not matrix.get_dense_tensor()[place].any()
    model.both = True
    matrix.update_diag(x)
    expected = FIM(model, x, "diag", variant="regression").get_diag()[place]
    assert relative_error(matrix.get_dense_tensor()[place, place], expected.diag()) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_low_precision_models_are_summed_in_float32(dtype: torch.dtype) -> None:
    case = MODELS["mlp"]().to(dtype)
    for kind in ("kfac", "ekfac", "quasidiag"):
        matrix = FIM(case.model, case.inputs, kind)
        assert matrix.dtype == torch.float32
        exact = FIM(case.model.double(), case.inputs.double(), kind)
        case.model.to(dtype)
        assert relative_error(matrix.trace(), exact.trace()) <= 0.05


def test_a_basis_lies_in_memory_as_one_from_a_file_does(whole: PMatEKFAC) -> None:
    """Products with it then round alike, so that a pass that was resumed gives the same bits."""
    assert whole.generator is not None
    sums = EKFACAccumulator(whole.layer_collection)
    one_pass(sums, whole.generator, 0, INPUTS)
    sums.begin_pass(1)
    for basis in sums.bases.values():
        assert basis.inputs is not None
        assert basis.inputs.is_contiguous()
        assert basis.outputs.is_contiguous()
