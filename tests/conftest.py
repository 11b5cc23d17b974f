"""A tiny tokenizer and a tiny model, built on the spot: no network, no files."""

import os
import string

# Tests never reach for the network: what would, fails at once instead of after many retries. Read at import.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Tiny matrices lose more to the handing over between threads than they gain by it.
torch.set_num_threads(1)


def byte_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """One token for each byte of UTF-8: 259 or 258 ids. With `bos`, a BOS once at the start, as Llama does.

    It claims a context of 64 tokens, so that every longer text would draw transformers' warning.
    """
    special = ["<s>", "</s>", "<unk>"] if bos else ["</s>", "<unk>"]
    tokens = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    names = {"eos_token": "</s>", "unk_token": "<unk>"} | ({"bos_token": "<s>"} if bos else {})
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, 259 ids, BOS once at the start of a text."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_without_bos() -> PreTrainedTokenizerFast:
    """Byte-level, 258 ids, no BOS at all."""
    return byte_tokenizer(bos=False)


@pytest.fixture
def tiny_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A random Llama of three blocks, positions up to 128: always the same, and a fresh one for each test."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def prose() -> str:
    """2000 characters of ASCII in which no piece of 20 characters occurs twice: a window tells its place."""
    letters = string.ascii_lowercase
    words = (f"{letters[i % 26]}{letters[i // 26 % 26]}{i:04d}" for i in range(400))
    return " ".join(words)[:2000]
