"""Small models to store, whole, cut or quantized, and their checkpoints."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.allocators import Target, allocate
from owl_compress.backends.rtn import Rtn
from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.stored_forms import form_named
from owl_compress.compression.driver import compress_with_
from owl_compress.documents.output_folders import output_folder
from owl_compress.errors import RequestError
from owl_compress.forms.codes import coded_modules
from owl_compress.forms.narrowing import KeptUnits, keep_units_
from owl_compress.importance.estimator import outline
from owl_compress.models.anatomy import find_anatomy
from owl_compress.models.structure import find_structure


@pytest.fixture(scope="session")
def keep_channels_() -> Callable[..., Any]:
    """A function that leaves each block the last channels of its feed-forward, as many as its width says."""

    def keep_(model: Any, *widths: int) -> Any:
        for site, width in zip(find_structure(model).blocks, widths, strict=True):
            anatomy = find_anatomy(site)
            assert anatomy.mlp is not None
            keep_units_(
                site, anatomy, KeptUnits(torch.arange(anatomy.mlp.n_channels - width, anatomy.mlp.n_channels))
            )
        return model

    return keep_


@pytest.fixture(scope="session")
def keep_heads_() -> Callable[..., Any]:
    """A function that leaves every block the first key-value heads, and of each its first query heads."""

    def keep_(model: Any, n_kv_heads: int, n_queries: int) -> Any:
        for site in find_structure(model).blocks:
            anatomy = find_anatomy(site)
            attention = anatomy.attention
            assert attention is not None
            heads = torch.arange(attention.n_heads).view(attention.n_kv_heads, -1)[:n_kv_heads, :n_queries]
            kept = KeptUnits(heads=heads.flatten(), kv_heads=torch.arange(n_kv_heads))
            keep_units_(site, anatomy, kept)
        return model

    return keep_


@pytest.fixture(scope="session")
def wide(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Any]:
    """A function that builds a random model whose feed-forwards have 768 channels."""

    def build(name: str = "Llama", **options: Any) -> Any:
        sizes = {
            "vocab_size": len(tokenizer), "hidden_size": 48, "intermediate_size": 768, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        }  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = getattr(transformers, f"{name}Config")(**sizes | options)
            model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(1)
                )
        return model.eval()

    return build


@pytest.fixture
def small_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "owls", "see", "at", "night"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture
def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip


@pytest.fixture
def checkpoint(
    tmp_path: Path, small_llama: LlamaForCausalLM, small_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A whole checkpoint that a test may break."""
    with output_folder(tmp_path / "checkpoint") as temporary:
        assert save_checkpoint(small_llama, small_tokenizer, temporary) == ()
    return tmp_path / "checkpoint"


@pytest.fixture(scope="session")
def refusal() -> Callable[..., str]:
    """A function that gives the one line with which loading a model is refused."""

    def refuse(source: Path | str, **options: object) -> str:
        with pytest.raises(RequestError) as caught:
            load_model(str(source), **options)  # type: ignore[arg-type]
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 500
        return message

    return refuse


@dataclass(frozen=True)
class Saved:
    """A model in memory, and the checkpoint that a form made of it."""

    model: Any
    folder: Path

    @property
    def source(self) -> CheckpointSource:
        return CheckpointSource.of_folder(self.folder)


def quantized(model: Any, group_size: int | None = None) -> Any:
    plan = allocate(outline(model), "uniform", Target.from_bits(4, (4,)), {})
    compress_with_(model, plan, Rtn(group_size), None)
    assert any(coded_modules(model))
    return model


@pytest.fixture(scope="session")
def make(
    make_model: Callable[[str], Any], keep_channels_: Callable[..., Any], wide: Callable[..., Any]
) -> Callable[[str], Any]:
    """A function that makes a tiny model of a kind: plain, quantized, narrowed, or narrowed and quantized."""

    def build(kind: str) -> Any:
        if kind == "on the grid of DeciLM":
            return keep_channels_(wide(), 256, 768, 512)
        model = make_model("llama")
        if "narrowed" in kind:
            keep_channels_(model, 61, 59, 57)
        return quantized(model) if "quantized" in kind else model

    return build


KINDS = {
    "decilm": "on the grid of DeciLM",
    "packed-narrow": "narrowed and quantized",
    "narrow": "narrowed",
    "packed": "quantized",
    "dense": "plain",
}


@pytest.fixture(scope="session")
def saved(
    make: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Saved]:
    """A function that gives, for each form that can save, a model and its checkpoint, not to be changed."""
    made: dict[str, Saved] = {}

    def save(name: str) -> Saved:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = Saved(make(KINDS[name]), folder)
            save_checkpoint(made[name].model, tokenizer, folder, form_named(name))
        return made[name]

    return save


@pytest.fixture
def gptq_folder(saved: Callable[[str], Saved], tmp_path: Path) -> Path:
    """A folder whose configuration says what GPTQModel writes there."""
    config = json.loads((saved("dense").folder / "config.json").read_text())
    description = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": description}))
    return tmp_path
