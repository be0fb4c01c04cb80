"""Targets of `nngeo compute`, for test_compute.py."""

import os
from typing import Any

import torch
from distributed_work import data, model
from torch.utils.data import DataLoader, Subset, TensorDataset


def whole() -> Any:
    """A model and all examples, whichever process asks."""
    return model(), DataLoader(TensorDataset(*data()), batch_size=2)


def shards() -> Any:
    """A model, the examples of this process, and options."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    examples = TensorDataset(*data())
    mine = Subset(examples, range(rank, len(examples), size))
    return model(), DataLoader(mine, batch_size=2), {"variant": "classif_logits", "progress": rank < 2}


def named() -> Any:
    """A mapping, and a loss."""

    def loss(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, y, reduction="none")

    return {"model": model(), "loader": data(), "loss": loss}


def broken() -> Any:
    """What `shards` returns, and nothing that could be taken on the second process."""
    return wrong() if os.environ.get("RANK") == "1" else shards()


def wrong() -> Any:
    """No model."""
    return "a model"
