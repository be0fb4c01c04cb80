"""What one of several processes is given wrongly, or finds on the way, ends on all of them, in step for the next call."""

from typing import Any

import pytest

from .processes import Failure, run

TOLD = "ends on all processes, because process 1 raised "
GIVEN = {
    "FIM implicit": ("ValueError: give either `data` or `examples` to PMatImplicit; got neither", " (in 'FIM')"),
    "list": ("ValueError: give either `data` or `examples` to PMatImplicit; got neither", " (in 'FIM')"),
    "Hessian implicit": ("ValueError: give either `data` or `examples` to PMatImplicit", " (in 'Hessian')"),
    "GramMatrix dense": ("ValueError: give either `data` or `examples` to FMatDense", " (in 'GramMatrix')"),
    "Jacobian dense": ("ValueError: PushForwardDense needs `data`, or a `generator` and", " (in 'Jacobian')"),
    "update": ("ValueError: give either `data` or `examples` to PMatKFAC; got neither", " (in 'an update')"),
    "model without shapes": ("ValueError: parameters without a shape yet: 0.weight, 0.bias", " (in 'FIM')"),
    "no representations": ("ValueError: representation is an empty list", " (in 'FIM')"),
    "variant": ("PluginError: unknown likelihood 'no such'", " (in 'FIM')"),
    "memory_budget": ("ValueError: memory_budget is a positive number of bytes, got -1", " (in 'FIM')"),
    "check": ("ValueError: check is one of", " (in 'FIM')"),
    "checkpoint_every": ("ValueError: checkpoint_every is a number of batches, at least 1; got 0", " (in 'FIM')"),
    "checkpoint of nothing": ("UnsupportedOperationError: nothing is summed over the examples", " (in 'FIM')"),
    "n_output": ("ValueError: n_output=4 was given, and the model returns 3", ""),
    "iterator": ("ValueError: a matrix without sums goes over the examples at each product", " (in 'FIM')"),
    "trials": ("ValueError: trials", " (in 'FIM_MonteCarlo')"),
    "no loss": ("ValueError: give a `variant`, whose -log p(y | outputs) is the loss", " (in 'GGN')"),
    "loss": ("TypeError: loss maps outputs and targets to one loss", " (in 'EmpiricalFIM')"),
    "Hessian": ("UnsupportedOperationError: a Hessian has products and no Jacobians", " (in 'Hessian')"),
    "Hessian's loss": ("ValueError: give a `variant`, whose -log p(y | outputs) is the loss", " (in 'Hessian')"),
    "kernel": ("PluginError: unknown fmat representation 'no such'", " (in 'GramMatrix')"),
    "buffer": ("ShapeError: the buffer has shape (1,)", ""),
    "buffer of nothing": ("ValueError: an implicit kernel stores nothing", " (in 'GramMatrix')"),
    "method": ("ValueError: method is None (the cheapest) or one of", ""),
    "map": ("PluginError: unknown push_forward representation 'no such'", " (in 'Jacobian')"),
    "decay": ("ValueError: decay is the weight of the old matrix, between 0 and 1; got 2", ""),
    "decay of other processes": ("ValueError: decay is the weight of the old matrix", ""),
    "mv": ("ShapeError: a batch of vectors has the shape (k, 27) or (c, n, 27), got (1, 5)", " (in 'a product')"),
    "vTMv": ("TypeError: expected a PVector, got Tensor", " (in 'a quadratic form')"),
    "mv of a sum": ("ShapeError: a batch of vectors has the shape (k, 27)", " (in 'a product')"),
    "solve": ("ValueError: regul is a finite number >= 0", " (in 'a solution')"),
    "solve with K": ("ValueError: regul is a finite number >= 0", " (in 'a solution')"),
    "eigenvalues": ("ValueError: ", " (in 'an eigendecomposition')"),
    "eigenvalues of K": ("ValueError: k is how many eigenvalues to take, 1 to 33", " (in 'an eigendecomposition')"),
    "J v": ("TypeError: a PushForwardImplicit multiplies a vector or the other map", " (in 'a product')"),
    "J^T u": ("ShapeError: expected an FVector of shape", ""),
    "K u": ("ShapeError: ", ""),
}
"""What process 1 raises, and in which operation, where that is not the one in which the others are told."""
LOST = ("OSError: the disk is gone", "")
NO_LOADER: tuple[Any, str] = (("TypeError: examples are one batch", "ValueError: give either `data` or `examples`"), "")
DIFFERENT = "it differs in the number of loaders: 1 there, 2 here"


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest) -> list[dict[str, dict[str, str]]]:
    """What each process meets in every call."""
    results: list[Any] = run("distributed_arguments.py", "everything", request.param, timeout=30)
    assert [one for one in results if isinstance(one, Failure)] == []
    return results


@pytest.mark.parametrize("kind", ["no loader", "broken loader", "arguments"])
def test_an_error_of_one_process_is_told_to_all(found: list[dict[str, dict[str, str]]], kind: str) -> None:
    assert found[0]["no loader"].keys() | found[0]["arguments"].keys() >= GIVEN.keys()
    for case, own in found[1][kind].items():
        messages = [one[kind][case] for one in found]
        if case.startswith("after "):
            assert set(messages) == {"nothing"}, case
        elif (kind, case) == ("no loader", "cross kernel"):
            assert all(DIFFERENT in message for message in messages)
        else:
            raised, place = LOST if kind == "broken loader" else GIVEN.get(case, NO_LOADER)
            assert own.startswith(raised), (case, own)
            for message in messages[:1] + messages[2:]:
                assert message.startswith("DistributedError: "), (case, message)
                assert f"{TOLD}{own}{place}" in message, (case, message)


def test_outputs_of_different_numbers_are_refused_on_all(found: list[dict[str, dict[str, str]]]) -> None:
    for case, message in found[0]["outputs"].items():
        assert message.startswith("ShapeError: "), (case, message)
        assert "the examples of different processes have 3, 4 outputs each; one matrix needs equally many" in message
        assert {one["outputs"][case] for one in found} == {message}
