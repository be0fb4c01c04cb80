"""PushForward and PullBack: two abstract maps, adjoint to one another."""

import pytest
import torch
from torch import Tensor

from nngeo_core import FVector, LayerCollection, LinearLayer, PullBack, PushForward, PVector

LAYERS = LayerCollection({"fc": LinearLayer(2, 1)})
J = torch.arange(12.0).view(2, 2, 3)


class Push(PushForward):
    name = "dense"

    def mv(self, v: PVector) -> FVector:
        return FVector(vector_repr=torch.einsum("cnd,d->cn", self.jacobian, v.get_flat_representation()))

    jacobian: Tensor = J


class Pull(PullBack):
    name = "dense"

    def mv(self, u: FVector) -> PVector:
        return PVector(LAYERS, vector_repr=torch.einsum("cnd,cn->d", J, u.vector_repr))


def test_the_maps_are_adjoint() -> None:
    v = PVector(LAYERS, vector_repr=torch.tensor([1.0, -2.0, 3.0]))
    u = FVector(vector_repr=torch.tensor([[1.0, 0.0], [2.0, -1.0]]))
    assert (Push().mv(v) @ u).item() == (v @ Pull().mv(u)).item() != 0


def test_kinds_tell_them_apart() -> None:
    assert (PushForward.kind, PullBack.kind) == ("push_forward", "pull_back")


@pytest.mark.parametrize("kind", [PushForward, PullBack])
def test_they_are_abstract(kind: type) -> None:
    with pytest.raises(TypeError, match="abstract"):
        kind()
