"""Sums over parts of the data, from files and from other processes, are the sums over the whole."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nngeo import (
    FIM,
    Accumulator,
    Generator,
    HooksGenerator,
    LayerCollection,
    LinearLayer,
    PMat,
    StorageError,
    populate,
)
from nngeo_core.plugins import registry
from nngeo_core.testing import MODELS, Case, relative_error

CASE = MODELS["conv"]()
X = torch.cat([CASE.inputs + shift for shift in (0.0, 0.3, -0.7, 1.1)])
NAMES = [
    name
    for name in registry.names("representations")
    if registry.representation(name).prepare(HooksGenerator(CASE.model, "regression"))
]


def generator(case: Case = CASE) -> Generator:
    return HooksGenerator(case.model, "classif_logits")


def one_pass(kind: type[PMat], shard: Tensor, number: int, begun: Path, saved: Path) -> None:
    """What one process does."""
    own = generator()
    sums = kind.prepare(own)
    assert sums is not None
    if number:
        sums.load(begun)
    populate(own, [(batch,) for batch in shard.split(2)], [sums], only_pass=number)
    sums.save(saved)


def merged(kind: type[PMat], paths: list[Path]) -> Accumulator:
    whole, part = kind.prepare(generator()), kind.prepare(generator())
    assert whole is not None and part is not None
    whole.load(paths[0])
    for path in paths[1:]:
        part.load(path)
        whole.merge(part)
    return whole


@pytest.mark.parametrize("name", NAMES)
def test_ten_shards_in_any_order_are_the_whole(tmp_path: Path, name: str) -> None:
    kind = registry.representation(name)
    whole = FIM(CASE.model, X, name)
    begun, paths = tmp_path / "begun", [tmp_path / str(number) for number in range(10)]
    for number in range(kind.prepare(generator()).passes):
        for path, shard in zip(paths, X.tensor_split([1, 2, 3, 7, 9, 10, 12, 13, 18]), strict=True):
            one_pass(kind, shard, number, begun, path)
        random.Random(number).shuffle(paths)
        sums = merged(kind, paths)
        if number + 1 < sums.passes:
            sums.begin_pass(number + 1)
            sums.save(begun)
    found = kind(generator(), data=sums.finalize(), n_examples=sums.n_examples)
    assert found.n_examples == whole.n_examples == len(X)
    assert relative_error(found.get_dense_tensor(), whole.get_dense_tensor()) <= 1e-10


def test_sums_of_another_kind_or_of_other_layers_are_refused(tmp_path: Path) -> None:
    sums = registry.representation("kfac").prepare(generator())
    sums.save(tmp_path / "sums")
    with pytest.raises(
        StorageError, match=r"holds sums with the representation .*KFACAccumulator, and these have .*DiagAcc"
    ):
        registry.representation("diag").prepare(generator()).load(tmp_path / "sums")
    layers = LayerCollection({"fc": LinearLayer(2, 1)})
    with pytest.raises(StorageError, match="holds sums with the layers "):
        type(sums)(layers).load(tmp_path / "sums")
    with pytest.raises(StorageError, match=r"holds a sums, expected a pmat; Accumulator\.load\(path\) reads it"):
        PMat.load(tmp_path / "sums")


def test_only_a_pass_that_there_is_can_be_made(tmp_path: Path) -> None:
    own = generator()
    with pytest.raises(ValueError, match="these sums take the passes 0 to 0, got only_pass=1"):
        populate(own, X, [registry.representation("diag").prepare(own)], only_pass=1)


def test_the_page_s_lines_work_in_processes_of_their_own(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "files.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = ["import sys", blocks[0].partition("F = FIM")[0], blocks[2], "folder = Path(sys.argv[1])", blocks[3]]
    script = tmp_path / "shards.py"
    script.write_text("\n".join([*lines, "sum_shard(int(sys.argv[2]), of=2)"]), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(tmp_path)]
    processes = [subprocess.Popen([*command, number], env=environment) for number in ("0", "1")]
    assert [process.wait() for process in processes] == [0, 0]
    namespace: dict[str, object] = {"__name__": "page"}
    argv, sys.argv = sys.argv, [str(script), str(tmp_path)]
    try:
        exec(compile("\n".join([*lines, "whole = merge_shards(of=2)"]), str(script), "exec"), namespace)
    finally:
        sys.argv = argv
    whole = namespace["whole"]
    assert isinstance(whole, Accumulator)
    expected = FIM(namespace["model"], namespace["x"], "kfac")  # type: ignore[arg-type]
    found = registry.representation("kfac")(namespace["generator"], data=whole.finalize(), n_examples=whole.n_examples)
    assert found.n_examples == 60
    assert relative_error(found.get_dense_tensor(), expected.get_dense_tensor()) <= 1e-5
