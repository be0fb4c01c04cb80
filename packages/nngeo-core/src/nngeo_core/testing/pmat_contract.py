"""PMatContract: a representation computed from models, checked against oracles and in every way of feeding it.

Needs pytest, and nngeo-generators installed for the generator `"hooks"`.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from nngeo_core.layers.collection import LayerCollection
from nngeo_core.matrices.pmat import PMat
from nngeo_core.plugins import registry
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.populate import populate
from nngeo_core.testing.models import MODELS, Case, mlp
from nngeo_core.testing.oracles import fisher, relative_error
from nngeo_core.testing.pmat_algebra import PMatAlgebraContract
from nngeo_core.testing.pmat_spectrum import TOLERANCE

__all__ = ["PMatContract"]

VARIANTS = ("classif_logits", "regression")


class PMatContract(PMatAlgebraContract):
    """A representation over all of `MODELS`: its value, how the data may come, and then its linear algebra.

    Subclass it as `Test...` and name the representation. One that is not exact says how its dense value follows.

    Example:
        >>> from nngeo_core.testing import PMatContract
        >>> class TestStriped(PMatContract):
        ...     representation = PMat  # yours
        ...
        ...     def dense_value(self, case, layers, variant):
        ...         return super().dense_value(case, layers, variant) * stripes(layers)
    """

    representation: ClassVar[type[PMat]]

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        """What `get_dense_tensor` must be, shape (d, d), from oracles: F itself unless overridden."""
        return _fisher_oracle(case, tuple(name for names in layers.parameter_names.values() for name in names), variant)

    @pytest.fixture(params=MODELS)
    def case(self, request: pytest.FixtureRequest) -> Case:
        """The model and its inputs."""
        return _case(request.param)

    @pytest.fixture
    def generator(self, case: Case) -> Generator:
        """What differentiates the model, for the first of the likelihoods."""
        return _generator(case, VARIANTS[0])

    @pytest.fixture
    def matrix(self, case: Case) -> PMat:
        """The representation of the Fisher matrix of the model."""
        return _matrix(self.representation, case, VARIANTS[0])

    @pytest.fixture
    def other(self, case: Case, generator: Generator) -> PMat:
        """That of the same model on other inputs."""
        return self.representation(generator, examples=case.inputs.flip(0)[:2] * 0.5 - 1)

    @pytest.fixture
    def stranger(self) -> PMat:
        """That of another model."""
        return _matrix(self.representation, _stranger(), VARIANTS[0])

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_value(self, case: Case, variant: str) -> None:
        """The dense tensor is what the oracle says, averaged over the examples, which are counted."""
        matrix = _matrix(self.representation, case, variant)
        expected = self.dense_value(case, matrix.layer_collection, variant)
        assert relative_error(matrix.get_dense_tensor(), expected) <= TOLERANCE
        assert matrix.n_examples == len(case.inputs)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_float32(self, case: Case, variant: str) -> None:
        """A model in float32 gives a matrix in float32, to 1e-4."""
        single, matrix = case.to(torch.float32), _matrix(self.representation, case, variant)
        found = self.representation(_generator(single, variant), examples=single.inputs)
        assert found.dtype == torch.float32
        assert relative_error(found.get_dense_tensor(), matrix.get_dense_tensor()) <= 1e-4

    def test_batches_do_not_matter(self, case: Case, generator: Generator, matrix: PMat) -> None:
        """One by one, in reverse order, in uneven batches, it is the same matrix."""
        x = case.inputs
        for tensors in (x.split(1), x.flip(0).split(2), (x[:0], *x.split(3))):
            found = self.representation(generator, examples=[(tensor,) for tensor in tensors])
            assert relative_error(found.get_dense_tensor(), matrix.get_dense_tensor()) <= TOLERANCE
            assert found.n_examples == matrix.n_examples

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_chunks_do_not_matter(self, case: Case, variant: str) -> None:
        """One output direction of one example at a time, and whatever fits some kilobytes, give the same matrix."""
        matrix = _matrix(self.representation, case, variant)
        for memory_budget in (1, 4096):
            found = self.representation(_generator(case, variant, memory_budget), examples=case.inputs)
            assert relative_error(found.get_dense_tensor(), matrix.get_dense_tensor()) <= TOLERANCE
            assert found.n_examples == matrix.n_examples

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_slices_of_directions_do_not_matter(self, case: Case, variant: str) -> None:
        """One, three or all output directions of all examples at a time give the same matrix."""
        generator, matrix = _generator(case, variant), _matrix(self.representation, case, variant)
        total = generator.jacobian(case.inputs).total_directions
        for width in (1, 3, total):
            sums = self._sums(generator)
            for number in range(sums.passes):
                sums.begin_pass(number)
                for start in range(0, total, width):
                    sums.update(generator.jacobian(case.inputs, slice(start, min(start + width, total))))
            found = self.representation(generator, data=sums.finalize(), n_examples=sums.n_examples)
            assert relative_error(found.get_dense_tensor(), matrix.get_dense_tensor()) <= TOLERANCE
            assert found.n_examples == matrix.n_examples

    def test_halves_merge(self, case: Case, generator: Generator, matrix: PMat) -> None:
        """Sums over two parts of the data, merged, saved and loaded in each pass, are the sums over the whole."""
        half = len(case.inputs) // 2
        state: Mapping[str, Tensor] = {}
        for number in range(self._sums(generator).passes):
            first, second = (
                self._one_pass(generator, part, number, state)
                for part in case.inputs.split([half, len(case.inputs) - half])
            )
            first.merge(second)
            state = first.state_dict()
        loaded = self._sums(generator)
        loaded.load_state_dict(state)
        for sums in (first, loaded):
            found = self.representation(generator, data=sums.finalize(), n_examples=sums.n_examples)
            assert relative_error(found.get_dense_tensor(), matrix.get_dense_tensor()) <= TOLERANCE
            assert found.n_examples == matrix.n_examples

    def test_resumed_sweep(self, case: Case, generator: Generator, matrix: PMat) -> None:
        """A saved single-pass sweep goes on with the rest of the data."""
        if self._sums(generator).passes > 1 or len(case.inputs) == 1:
            return
        sums, resumed = (self._sums(generator) for _ in range(2))
        populate(generator, case.inputs[:1], [sums])
        resumed.load_state_dict(sums.state_dict())
        populate(generator, case.inputs[1:], [resumed])
        found = self.representation(generator, data=resumed.finalize(), n_examples=resumed.n_examples)
        assert relative_error(found.get_dense_tensor(), matrix.get_dense_tensor()) <= TOLERANCE
        assert found.n_examples == matrix.n_examples

    def test_data_alone(self, matrix: PMat) -> None:
        """The same data without a generator is the same matrix."""
        found = self.representation(data=matrix.data, layer_collection=matrix.layer_collection)
        assert relative_error(found.get_dense_tensor(), matrix.get_dense_tensor()) == 0
        assert found.n_examples is None

    def test_no_examples_are_refused(self, generator: Generator) -> None:
        """An empty loader has no Fisher matrix."""
        with pytest.raises(ValueError, match="no examples"):
            self.representation(generator, examples=iter([]) if self._sums(generator).passes == 1 else [])

    def _sums(self, generator: Generator) -> Accumulator:
        """What a sweep has to fill."""
        sums = self.representation.prepare(generator)
        assert sums is not None, f"{self.representation.__name__} stores no sums"
        return sums

    def _one_pass(self, generator: Generator, part: Tensor, number: int, state: Mapping[str, Tensor]) -> Accumulator:
        sums = self._sums(generator)
        if state:
            sums.load_state_dict(state)
        sums.begin_pass(number)
        batches: Iterable[Any] = [part] if len(part) else []
        with torch.no_grad():
            for batch in generator.stream(batches):
                sums.update(batch)
        return sums


@cache
def _case(model: str) -> Case:
    return MODELS[model]()


@cache
def _stranger() -> Case:
    return mlp((2, 2))


@cache
def _generator(case: Case, variant: str, memory_budget: int | None = None) -> Generator:
    generator = registry.generator("hooks")
    found: Generator = generator(case.model, registry.likelihood(variant)(), memory_budget=memory_budget)
    return found


@cache
def _matrix(representation: type[PMat], case: Case, variant: str) -> PMat:
    return representation(_generator(case, variant), examples=case.inputs)


@cache
def _fisher_oracle(case: Case, names: tuple[str, ...], variant: str) -> Tensor:
    return fisher(case.model, case.inputs, names, variant)
