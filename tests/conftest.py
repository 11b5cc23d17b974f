"""A tiny tokenizer and a tiny model, built on the spot: no network, no files."""

import hashlib
import json
import os
import signal
import string
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Tests never reach for the network: what would, fails at once instead of after many retries. Read at import.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.cli import _exit_code
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.provenance import CalibrationRecord
from owl_compress.models.structure import LinearSite, find_structure

# Tests raise signals that a background process, or one under nohup, is started to ignore.
for _name, _usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    _kind = getattr(signal, _name, None)
    if _kind and signal.getsignal(_kind) is signal.SIG_IGN:
        signal.signal(_kind, _usual)

# The same examples in every run, and no deadlines: a change is not refused for what another run would have
# drawn, nor for a busy machine. `--hypothesis-profile=default` draws anew.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")

# Tiny matrices lose more to the handing over between threads than they gain by it.
torch.set_num_threads(1)


IDS = torch.arange(3, 60)[None]
"""Tokens that every tiny model knows, [1, 57]."""


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
def here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_llama: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """The working folder: `model` (three blocks, 27648 weights in linears), `text.txt`, `other.txt`."""
    tiny_llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(f"owl{number:04d}" for number in range(500)))  # 3999 bytes
    (tmp_path / "other.txt").write_text(" ".join(f"{number:04d}bat" for number in range(100)))  # 799 bytes
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def logits_of() -> Callable[[Any], Tensor]:
    """A function that gives a model's logits for always the same tokens."""

    def compute(model: Any) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(IDS).logits
        return logits

    return compute


@pytest.fixture
def measured(here: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., None]:
    """A function that saves `MODEL`, a Llama whose linears other tools take, and measures `report.json`."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_key_value_heads": 2}

    def measure(tokenizer: Any = tokenizer, **changes: int) -> None:
        config = LlamaConfig(
            vocab_size=len(tokenizer), num_attention_heads=4, max_position_embeddings=128, **sizes | changes
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            LlamaForCausalLM(config).save_pretrained(here / "MODEL")
        tokenizer.save_pretrained(here / "MODEL")
        words = ("measure", "MODEL", "--calib", "text.txt", "--samples", "4", "--seq-len", "32", "--quiet")
        assert _exit_code([*words, "-o", "report.json"]) == 0

    return measure


@pytest.fixture
def allocated(here: Path) -> Callable[..., dict[str, float]]:
    """A function that writes `plan.json` from `report.json`, and gives its budgets by linear."""

    def allocate(*options: str) -> dict[str, float]:
        assert _exit_code(["allocate", "report.json", *options, "-o", "plan.json", "--quiet"]) == 0
        budgets = json.loads((here / "plan.json").read_text())["budgets"]
        return {row["name"]: row["value"] for row in budgets}

    return allocate


@pytest.fixture
def copied_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Copies of modelling files, which transformers makes in order to run them, go below `tmp_path`."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    # What was imported from there is gone, and another test may have files of the same name.
    for name in [one for one in sys.modules if one.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture
def prose() -> str:
    """2000 characters of ASCII in which no piece of 20 characters occurs twice: a window tells its place."""
    letters = string.ascii_lowercase
    words = (f"{letters[i % 26]}{letters[i // 26 % 26]}{i:04d}" for i in range(400))
    return " ".join(words)[:2000]


VOCABULARY = 259  # that of byte_tokenizer
_SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GATED = _SIZE | {"intermediate_size": 64, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_GEMMA3 = _GATED | {
    "head_dim": 8,
    "sliding_window": 8,  # shorter than the windows of the tests, so that it makes a difference
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}

_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
_VISION = {
    "vision_config": _TOWER | {"image_size": 28, "patch_size": 14},
    "mm_tokens_per_image": 4,
    "boi_token_index": 0,
    "eoi_token_index": 1,
    "image_token_index": 2,
}

# By name: the class of the configuration, and its options. Every input size is a multiple of 8.
TINY_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GATED),
    "mistral": ("MistralConfig", _GATED | {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", _GATED),
    "qwen3": ("Qwen3Config", _GATED | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", _GATED | {"head_dim": 8, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", _GEMMA3),
    "gemma3_with_vision": ("Gemma3Config", _VISION | {"text_config": _GEMMA3}),
    "phi3": ("Phi3Config", _GATED),
    "opt": ("OPTConfig", _SIZE | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt2": ("GPT2Config", _GPT2 | _IDS),
    "gpt_neox": ("GPTNeoXConfig", _SIZE | {"intermediate_size": 64}),
    "bloom": ("BloomConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 3, "n_head": 4} | _IDS),
    "falcon": ("FalconConfig", _SIZE),
    "falcon_grouped": ("FalconConfig", _SIZE | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": ("FalconConfig", _SIZE | {"alibi": True, "multi_query": False, "parallel_attn": False}),
}
_ROTARY = _GPT2 | _IDS | {"rotary_dim": 4}
_NEO = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_layers": 4,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 2]],
    "max_position_embeddings": 128,
}
_MPT = {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 128}
# The same of families that no table knows.
UNTABLED_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "starcoder2": ("Starcoder2Config", _GATED),
    "phi": ("PhiConfig", _GATED),
    "stablelm": ("StableLmConfig", _GATED),
    "gptj": ("GPTJConfig", _ROTARY),
    "codegen": ("CodeGenConfig", _ROTARY),
    "gpt_neo": ("GPTNeoConfig", _NEO | _IDS),
    "cohere": ("CohereConfig", _GATED),
    "olmo": ("OlmoConfig", _GATED),
    "granite": ("GraniteConfig", _GATED),
    "nemotron": ("NemotronConfig", _GATED | {"head_dim": 8}),
    "gemma": ("GemmaConfig", _GATED | {"head_dim": 8}),
    "persimmon": ("PersimmonConfig", _SIZE | {"intermediate_size": 64}),
    "mpt": ("MptConfig", _MPT | _IDS),
    "glm": ("GlmConfig", _GATED | {"head_dim": 8}),
}
UNKNOWN = "unknown"


class PlainBlock(nn.Module):
    """A decoder block as nobody wrote it: no attention, a positional mask, a bare tensor as output."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.mix = nn.Linear(hidden, 2 * hidden)
        self.back = nn.Linear(2 * hidden, hidden)

    def forward(self, hidden: torch.Tensor, averaging: torch.Tensor) -> torch.Tensor:
        return hidden + self.back(torch.tanh(self.mix(averaging @ self.norm(hidden))))


class PlainDecoder(nn.Module):
    """A causal language model of an architecture that no table knows."""

    def __init__(self, hidden: int = 32, n_blocks: int = 3) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="plain", use_cache=True, max_position_embeddings=128)
        self.tokens = nn.Embedding(VOCABULARY, hidden)
        self.stages = nn.ModuleList(PlainBlock(hidden) for _ in range(n_blocks))
        self.head = nn.Linear(hidden, VOCABULARY)

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    def get_input_embeddings(self) -> nn.Embedding:
        return self.tokens

    def forward(self, input_ids: torch.Tensor, use_cache: bool | None = None) -> SimpleNamespace:
        length = input_ids.shape[1]
        averaging = torch.ones(length, length, dtype=self.dtype, device=input_ids.device).tril()
        averaging /= averaging.sum(dim=1, keepdim=True)
        hidden = self.tokens(input_ids)
        for stage in self.stages:
            hidden = stage(hidden, averaging)
        return SimpleNamespace(logits=self.head(hidden))


class RunningHead(nn.Module):
    """A head that looks at every position before its own, too."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight, self.head = head.weight, head

    def forward(self, hidden: Tensor) -> Tensor:
        return self.head(hidden.cumsum(dim=1))


@pytest.fixture
def running_head() -> Callable[[nn.Linear], nn.Module]:
    """Makes of a head one whose logits do not follow from single positions."""
    return RunningHead


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], Any]:
    """A function that builds the tiny model of a name above, or the unknown one: always the same."""

    def build(name: str) -> nn.Module:
        if name == UNKNOWN:
            return PlainDecoder()
        config_class, options = (TINY_MODELS | UNTABLED_MODELS)[name]
        config = getattr(transformers, config_class)(**options)
        return transformers.AutoModelForCausalLM.from_config(config)

    def make(name: str) -> Any:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = build(name)
            # Norms and biases start out all alike; in a trained model they are not.
            for vector in (parameter for parameter in model.parameters() if parameter.ndim == 1):
                vector.add_(torch.randn_like(vector), alpha=0.1)
        return model.eval()

    return make


FAMILIES = (*TINY_MODELS, UNKNOWN)


@pytest.fixture(params=range(len(FAMILIES)), ids=FAMILIES)
def family_index(request: pytest.FixtureRequest) -> int:
    """The place of every tiny model in turn."""
    return int(request.param)


@pytest.fixture
def family_model(family_index: int, make_model: Callable[[str], Any]) -> Any:
    """Every tiny model in turn, a fresh one for each test."""
    return make_model(FAMILIES[family_index])


@pytest.fixture(scope="session")
def make_windows() -> Callable[..., TokenWindows]:
    """A function that draws token windows of a given shape at random: always the same."""

    def make(sequences: int = 3, seq_len: int = 24, seed: int = 0) -> TokenWindows:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, VOCABULARY, (sequences, seq_len), generator=generator)
        record = CalibrationRecord(
            source="random ids",
            token_ids_sha256=hashlib.sha256(ids.numpy().tobytes()).hexdigest(),
            sequences=sequences,
            seq_len=seq_len,
            sampling="random",
            seed=seed,
            bos="never",
        )
        return TokenWindows(ids, record)

    return make


@pytest.fixture(scope="session")
def wanda_scores() -> Callable[..., dict[str, Tensor]]:
    """An oracle: |W_ij| · ‖X_j‖ of linears, float64, from plain forward passes of the whole model."""

    def score(model: nn.Module, windows: TokenWindows, linears: Iterable[LinearSite]) -> dict[str, Tensor]:
        sites = list(linears)
        squares = {site.name: torch.zeros(site.shape[1], dtype=torch.float64) for site in sites}

        def add(name: str, inputs: Tensor) -> None:
            squares[name] += inputs.reshape(-1, inputs.shape[-1]).double().square().sum(dim=0)

        with ExitStack() as hooks, torch.no_grad():
            for site in sites:
                hook = site.module.register_forward_pre_hook(
                    lambda _, arguments, name=site.name: add(name, arguments[0])
                )
                hooks.callback(hook.remove)
            for ids in windows.batches(1):
                model(input_ids=ids)
        return {site.name: site.weight.double().abs() * squares[site.name].sqrt() for site in sites}

    return score


@pytest.fixture
def up_called_twice() -> Callable[..., Tensor]:
    """A forward for the feed-forward of a Llama that calls its up projection twice."""

    def forward(self: Any, hidden: Tensor) -> Tensor:
        down: Tensor = self.down_proj(
            self.gate_proj(hidden) * self.up_proj(hidden + self.up_proj(hidden).mean())
        )
        return down

    return forward


@pytest.fixture(scope="session")
def forwards_counted() -> Callable[[nn.Module], AbstractContextManager[list[list[int]]]]:
    """A context in which the sequence lengths are noted with which each block's own forward is called."""

    @contextmanager
    def count(model: nn.Module) -> Iterator[list[list[int]]]:
        modules = [block.module for block in find_structure(model).blocks]
        lengths: list[list[int]] = [[] for _ in modules]
        original = type(modules[0]).forward

        def counted(self: nn.Module, *positional: Any, **named: Any) -> Any:
            hidden = positional[0] if positional else named["hidden_states"]
            lengths[modules.index(self)].append(hidden.shape[1])
            return original(self, *positional, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(modules[0]), "forward", counted)
            yield lengths

    return count
