"""Functions of a script, run in several processes that torch.distributed joins.

A script that ends with `main({name: function, ...})` is started by `run`; it imports the library once and forks the processes:
nothing was computed in it before, so that they are as good as new ones.
"""

import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["Failure", "main", "run"]

PATIENCE = 200
"""Seconds until processes that do not come back are given up."""


class Failure(Exception):
    """What a process raised, as text; or that it died."""


def run(script: str, name: str, size: int, *arguments: str, timeout: float = 60, backend: str = "gloo") -> list[Any]:
    """What a function of a script returns on each process; a `Failure` in place of what it raises.

    Args:
        script: A file in this folder.
        name: The function's.
        size: How many processes.
        *arguments: The function's.
        timeout: That of the process group, in seconds.
        backend: "gloo", or "nccl" with a GPU for each process.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, script, name, str(size), folder, str(timeout), backend, *arguments]
        done = subprocess.run(
            command,
            env=environment,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [_result(Path(folder) / str(rank), done.stderr) for rank in range(size)]


def _result(path: Path, errors: str) -> Any:
    kind, found = pickle.loads(path.read_bytes()) if path.exists() else ("failure", f"it died: {errors}")
    return found if kind == "result" else Failure(found)


def main(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Run one of them in as many processes as the words of the command line say."""
    name, size, folder, timeout, backend, *arguments = sys.argv[1:]
    context = multiprocessing.get_context("fork")
    shared = (int(size), Path(folder), float(timeout), backend, arguments)
    started = [context.Process(target=_process, args=(functions[name], rank, *shared)) for rank in range(int(size))]
    for process in started:
        process.start()
    for process in started:
        process.join()


def _process(
    function: Callable[..., Any], rank: int, size: int, folder: Path, timeout: float, backend: str, arguments: list[str]
) -> None:
    os.environ["RANK"] = str(rank)
    store = dist.FileStore(str(folder / "store"), size)
    if backend == "nccl":
        torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, timeout=timedelta(seconds=timeout), world_size=size, rank=rank)
    try:
        result = ("result", function(*arguments))
    except Exception as error:
        result = ("failure", f"{type(error).__name__}: {error}")
    (folder / str(rank)).write_bytes(pickle.dumps(result))
    if result[0] == "result":
        dist.destroy_process_group()
