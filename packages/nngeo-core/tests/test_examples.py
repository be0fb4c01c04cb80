"""What counts as one batch and what as a loader, how batches are cut and moved, and how a model is called on them."""

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from nngeo_core.errors import ShapeError
from nngeo_core.likelihoods.targets import targets_of
from nngeo_core.sweep.examples import (
    call_model,
    count_examples,
    iterate_batches,
    move_batch,
    select_examples,
)

X, Y = torch.arange(12.0).view(4, 3), torch.arange(4)
Pair = namedtuple("Pair", ["x", "y"])

ONE_BATCH: dict[str, Any] = {
    "tensor": X,
    "tuple": (X, Y),
    "list": [X, Y],
    "tuple-of-one": (X,),
    "mapping": {"x": X, "labels": Y},
    "named-tuple": Pair(X, Y),
    "empty-batch": X[:0],
}
LOADERS: dict[str, Any] = {
    "list-of-tuples": [(X, Y), (X[:2], Y[:2])],
    "list-of-mappings": [{"x": X}, {"x": X}],
    "tensors-of-other-lengths": [X, X[:2]],
    "empty": [],
    "iterator": iter([X, X]),
    "nested": [((X, X), Y)],
}


@pytest.mark.parametrize("examples", ONE_BATCH.values(), ids=ONE_BATCH)
def test_tensors_of_equal_first_dimension_are_one_batch(examples: Any) -> None:
    (batch,) = iterate_batches(examples)
    assert batch is examples


@pytest.mark.parametrize(
    ("examples", "number"), list(zip(LOADERS.values(), [2, 2, 2, 0, 2, 1], strict=True)), ids=LOADERS
)
def test_anything_else_is_a_loader(examples: Any, number: int) -> None:
    assert len(list(iterate_batches(examples))) == number


def test_a_loader_is_not_read_ahead() -> None:
    read = []
    batches = iterate_batches(read.append(k) or X for k in range(3))
    next(batches)
    assert len(read) == 1


@pytest.mark.parametrize(
    "examples", [3, None, "cat", b"cat", nn.Linear(1, 1)], ids=["int", "None", "str", "bytes", "module"]
)
def test_what_is_neither_is_refused(examples: Any) -> None:
    with pytest.raises(TypeError) as error:
        list(iterate_batches(examples))
    assert str(error.value) == (
        "examples are one batch (a tensor, a mapping, or a tuple of tensors) or a loader that yields batches; "
        f"got {type(examples).__name__}"
    )


@pytest.mark.parametrize(
    "batch", [X, (X, Y), {"x": X, "more": [Y, (X, "text")]}, [((X,),), 3]], ids=["1", "2", "3", "4"]
)
def test_examples_are_the_first_dimension_of_every_tensor(batch: Any) -> None:
    assert count_examples(batch) == 4


@pytest.mark.parametrize(
    ("batch", "shapes"),
    [
        ((X, Y[:2]), "[(4, 3), (2,)]"),
        (torch.tensor(1.0), "[()]"),
        ({"x": X, "t": torch.tensor(1.0)}, "[(4, 3), ()]"),
        (["a"], "[]"),
    ],
)
def test_batches_without_a_common_first_dimension_are_refused(batch: Any, shapes: str) -> None:
    with pytest.raises(ShapeError) as error:
        count_examples(batch)
    assert str(error.value) == (
        f"every tensor of a batch has the examples as its first dimension; got {type(batch).__name__} with tensors of "
        f"shapes {shapes}. Give a loader that yields such batches"
    )


def test_cutting_keeps_the_structure() -> None:
    batch = {"x": X, "rest": [Y, Pair(X, "text")], "n": 3}
    cut = select_examples(batch, slice(1, 3))
    assert (cut["x"].equal(X[1:3]), cut["rest"][0].tolist(), cut["n"]) == (True, [1, 2], 3)
    assert type(cut["rest"][1]) is Pair and cut["rest"][1].x.equal(X[1:3]) and cut["rest"][1].y == "text"


def test_cutting_copies_nothing() -> None:
    assert select_examples((X, Y), slice(1, 3))[0].data_ptr() == X[1:].data_ptr()


def test_moving_to_where_it_is_copies_nothing() -> None:
    assert move_batch([X], torch.device("cpu"))[0] is X


def test_moving_changes_the_device_of_every_tensor() -> None:
    moved = move_batch({"x": X, "rest": (Y, "text")}, torch.device("meta"))
    assert (moved["x"].device.type, moved["rest"][0].device.type, moved["rest"][1]) == ("meta", "meta", "text")


def test_tensors_made_under_inference_mode_become_ordinary_ones() -> None:
    with torch.inference_mode():
        made = X + 1
    assert made.is_inference()
    moved = move_batch((made, Y), torch.device("cpu"))
    assert not moved[0].is_inference() and moved[0].equal(made)


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], Pair(X, Y), {"x": X, "labels": Y}, OrderedDict(labels=Y)])
def test_targets_are_the_second_of_a_pair_or_labels(batch: Any) -> None:
    assert targets_of(batch) is Y


@pytest.mark.parametrize("batch", [X, (X,), [X, "text"], {"x": X}, {"labels": None}, (X, numpy.ones(4))])
def test_batches_without_targets_are_refused(batch: Any) -> None:
    with pytest.raises(ValueError) as error:
        targets_of(batch)
    assert str(error.value) == (
        f"this likelihood needs targets, and the batch has none: got {type(batch).__name__}, expected (inputs, targets) "
        "or a mapping with 'labels'"
    )


class Doubling(nn.Module):
    def forward(self, x: Tensor, factor: float = 2.0) -> Tensor:
        return factor * x


@pytest.mark.parametrize("batch", [X, (X, Y), [X], {"x": X}, {"x": X, "labels": Y}, {"x": X, "factor": 2.0}])
def test_a_model_is_called_on_inputs_alone(batch: Any) -> None:
    assert call_model(Doubling(), None, batch).equal(2 * X)


@pytest.mark.parametrize(
    ("function", "batch"),
    [
        (lambda x: 2 * x, X),
        (lambda x, y: 2 * x + 0 * y[:, None], (X, Y)),
        (lambda x, y: 2 * x + 0 * y[:, None], [X, Y]),
        (lambda batch: 2 * batch["x"] + 0 * batch["labels"][:, None], {"x": X, "labels": Y}),
    ],
    ids=["tensor", "tuple", "list", "mapping"],
)
def test_a_function_is_called_on_the_whole_batch(function: Callable[..., Tensor], batch: Any) -> None:
    assert call_model(nn.Identity(), function, batch).equal(2 * X)


@pytest.mark.parametrize(
    "wrap", [lambda x: {"logits": x}, lambda x: OrderedDict(loss=1, logits=x), lambda x: SimpleNamespace(logits=x)]
)
def test_logits_of_what_comes_back(wrap: Callable[[Tensor], Any]) -> None:
    assert call_model(nn.Identity(), wrap, X) is X


@pytest.mark.parametrize("result", [None, (X, X), {"loss": X}, X.numpy(), SimpleNamespace(logits=3)])
def test_other_outputs_are_refused(result: Any) -> None:
    with pytest.raises(TypeError) as error:
        call_model(nn.Identity(), lambda x: result, X)
    assert str(error.value) == (
        f"the model returned {type(result).__name__}, expected one tensor or an object with `logits`; "
        "give a `function` that returns the tensor of outputs"
    )


def test_a_mapping_need_not_be_a_dict() -> None:
    class Encoding(Mapping[str, Tensor]):
        def __getitem__(self, key: str) -> Tensor:
            return {"x": X}[key]

        def __iter__(self) -> Any:
            return iter(["x"])

        def __len__(self) -> int:
            return 1

    assert list(iterate_batches(Encoding()))[0]["x"] is X
    assert (count_examples(Encoding()), select_examples(Encoding(), slice(1))["x"].shape) == (4, (1, 3))


@pytest.mark.parametrize("pieces", [3, 5])
def test_batches_in_a_tuple_look_like_one_batch_and_are_warned_of(pieces: int) -> None:
    parts = torch.randn(4 * pieces, 3).split(4)
    with pytest.warns(UserWarning, match=rf"tuple of {pieces} tensors of shape \(4, 3\) is one batch"):
        (batch,) = iterate_batches(parts)
    assert batch is parts


@pytest.mark.parametrize(
    "examples",
    [
        (torch.zeros(4, 3), torch.zeros(4)),
        (torch.zeros(4, 3), torch.zeros(4, 3)),
        (torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.float64)),
        (torch.zeros(4, 3, dtype=torch.int64),) * 3,
        [(torch.zeros(4, 3),) * 3],
        (torch.zeros(4, 3),),
    ],
)
def test_inputs_and_targets_that_differ_and_loaders_are_taken_without_a_warning(examples: Any) -> None:
    assert len(list(iterate_batches(examples))) == 1
