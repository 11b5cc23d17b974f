"""A small model of random weights as a folder, with a tokenizer of bytes, where quality does not matter."""

from pathlib import Path

from structured_memory import random_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_SPECIAL = ["<s>", "</s>", "<unk>"]


def save_tiny(folder: Path, n_blocks: int, hidden: int) -> int:
    """Write the model of `structured_memory.random_llama`.

    Returns:
        The bytes of one of its blocks.
    """
    model = random_llama(n_blocks, hidden)
    model.save_pretrained(folder)
    _byte_tokenizer().save_pretrained(folder)
    return sum(weight.numel() * weight.element_size() for weight in model.model.layers[0].parameters())


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte of UTF-8, and three more: 259."""
    vocabulary = {
        token: index for index, token in enumerate([*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = dict(zip(("bos_token", "eos_token", "unk_token"), _SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)
