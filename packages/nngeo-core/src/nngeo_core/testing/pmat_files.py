"""PMatFilesContract: a representation in files, copies and pickles. Needs pytest."""

import copy
import pickle
from pathlib import Path

import torch

from nngeo_core.matrices.pmat import PMat
from nngeo_core.testing.pmat_spectrum import PMatSpectrumContract

__all__ = ["PMatFilesContract"]


class PMatFilesContract(PMatSpectrumContract):
    """What outlasts the process: a fixture `matrix` is the same, bit for bit, when it comes back.

    A representation that stores no numbers lists `"save"` in `unsupported`.
    """

    def test_file(self, matrix: PMat, tmp_path: Path) -> None:
        """`load` of `save` is the same matrix, by the abstract class and by its own."""
        path = tmp_path / "matrix.safetensors"
        self.attempt("save", lambda: matrix.save(path))
        if "save" in self.unsupported:
            assert list(tmp_path.iterdir()) == []
            return
        for found in (PMat.load(path), type(matrix).load(path)):
            assert_same(matrix, found)
        assert type(found) is type(matrix)
        assert_same(matrix.to(torch.float32), PMat.load(path, map_location="cpu", dtype=torch.float32))
        single = matrix.to(torch.float32)
        single.save(path)
        assert_same(single, PMat.load(path))

    def test_copies(self, matrix: PMat) -> None:
        """Copies and pickled matrices are the same, whatever was computed before; copies share the generator."""
        if "save" in self.unsupported:
            return
        matrix.solve(torch.ones(1, matrix.layer_collection.numel(), dtype=matrix.dtype), regul=1.0)
        for found in (copy.copy(matrix), copy.deepcopy(matrix), pickle.loads(pickle.dumps(matrix))):
            assert_same(matrix, found)
        assert copy.deepcopy(matrix).generator is matrix.generator
        memory = {tensor.data_ptr() for tensor in matrix.tensors().values() if tensor.numel()}
        assert not memory & {tensor.data_ptr() for tensor in copy.deepcopy(matrix).tensors().values()}


def assert_same(matrix: PMat, other: PMat) -> None:
    """Raise `AssertionError` unless two matrices have the same numbers, bit for bit, and say the same of them."""
    assert isinstance(matrix, type(other))  # a class of its own may have the name of the registered one
    assert other.layer_collection == matrix.layer_collection
    expected, found = matrix.tensors(), other.tensors()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    said = [(one.n_examples, one.symmetric, one.likelihood) for one in (matrix, other)]
    assert said[0] == said[1]
    torch.testing.assert_close(other.trace(), matrix.trace(), rtol=0, atol=0)
