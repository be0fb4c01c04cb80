"""Text that every Python has: the language reference's topics, which the interactive help shows."""

from pydoc_data.topics import topics

import torch
from torch import Tensor

__all__ = ["ALPHABET", "characters", "reference", "sentences"]

ALPHABET = "\n !\"#$%&'()*+,-./0123456789:;<=>?@[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"


def reference() -> str:
    """All topics in the order of their names."""
    return "\n".join(topics[name] for name in sorted(topics))


def characters(length: int) -> Tensor:
    """The text in rows of so many characters, capitals as small letters, what is no letter of the alphabet as a space."""
    numbers = {letter: number for number, letter in enumerate(ALPHABET)}
    codes = torch.tensor([numbers.get(letter, numbers[" "]) for letter in reference().lower()])
    return codes[: len(codes) // length * length].view(-1, length)


def sentences(words: int) -> list[str]:
    """Paragraphs of at least so many words, without the layout."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in reference().split("\n\n"))
    return [paragraph for paragraph in paragraphs if len(paragraph.split()) >= words]
