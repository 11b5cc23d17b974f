"""Checkpoints of narrowed models: the same logits through ours and through plain transformers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from owl_compress.allocators import Target, allocate
from owl_compress.backends.magnitude import Magnitude
from owl_compress.backends.rtn import Rtn
from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.narrow_config import modelling_file
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.stored_forms import form_named
from owl_compress.compression.driver import compress_with_
from owl_compress.errors import RequestError
from owl_compress.forms.modeling_narrow import CONFIG_KEY
from owl_compress.forms.narrowing import KeptUnits, has_narrowed_blocks, keep_units_
from owl_compress.importance.estimator import outline
from owl_compress.models.anatomy import find_anatomy
from owl_compress.models.structure import find_structure

TINY_MODELS = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_with_vision", "phi3", "opt", "gpt2",
    "gpt_neox", "bloom", "falcon", "falcon_grouped", "falcon_alibi",
)  # fmt: skip
UNTABLED = (
    "starcoder2", "phi", "stablelm", "gptj", "codegen", "gpt_neo", "cohere", "olmo", "granite", "nemotron",
    "gemma", "persimmon", "mpt", "glm",
)  # fmt: skip
EMPTY, PACKED = "empty", "packed"
IDS = torch.arange(3, 60)[None]
PREFIX = IDS[:, :6]


def narrow_(model: Any, *, heads: bool = True, block: int | None = None) -> Any:
    """Take from every block (or one) a number of channels of its own, and from some the first heads."""
    for index, site in enumerate(find_structure(model).blocks):
        if block not in {None, index}:
            continue
        anatomy = find_anatomy(site)
        kept: dict[str, Tensor] = {}
        if anatomy.mlp is not None:
            kept["channels"] = torch.arange(3 + 2 * index, anatomy.mlp.n_channels)
        attention = anatomy.attention
        if heads and attention is not None and index != 1:
            kept |= _fewer_heads(attention.n_heads, attention.n_kv_heads)
        keep_units_(site, anatomy, KeptUnits(**kept))
    return model


def emptied(model: Any) -> Any:
    """Take the whole attention and the whole feed-forward from the second block."""
    site = find_structure(model).blocks[1]
    nothing = torch.arange(0)
    keep_units_(site, find_anatomy(site), KeptUnits(nothing, nothing, nothing))
    return model


def _fewer_heads(n_heads: int, n_kv_heads: int) -> dict[str, Tensor]:
    """The last key-value heads, or the last query heads of the only one."""
    kv_heads = torch.arange(1, n_kv_heads) if n_kv_heads > 1 else torch.arange(1)
    gone = n_heads // n_kv_heads if n_kv_heads > 1 else 1
    return {"kv_heads": kv_heads, "heads": torch.arange(gone, n_heads)}


def blocks_of(model: Any) -> list[Any]:
    return [site.module for site in find_structure(model).blocks]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def stored(
    make_model: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Callable[..., tuple[Any, Path]]:
    """A function that narrows a tiny model and saves it: the model in memory, and the folder."""

    def store(name: str = "llama", **options: bool) -> tuple[Any, Path]:
        model = narrow_(make_model(name), **options)
        folder = tmp_path / "OUT"
        folder.mkdir()
        save_checkpoint(model, tokenizer, folder)
        return model, folder

    return store


@pytest.mark.parametrize("name", [*TINY_MODELS, *UNTABLED])
@pytest.mark.parametrize("heads", [True, False], ids=["heads", "mlp"])
def test_every_family_loads_back_with_the_same_logits(
    logits_of: Callable[[Any], Tensor],
    stored: Callable[..., tuple[Any, Path]],
    name: str,
    heads: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, folder = stored(name, heads=heads)
    capsys.readouterr()
    again = load_model(str(folder)).model
    assert capsys.readouterr() == ("", "")
    assert type(again) is type(model)
    assert torch.equal(logits_of(again), logits_of(model))
    tokens = again.generate(PREFIX, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(tokens, model.generate(PREFIX, max_new_tokens=8, do_sample=False, eos_token_id=None))


LOADER = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("owl_compress", "torch_pruning"):
            raise ImportError(name + " is not to be imported")

sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        logits = model(ids).logits
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    cached = model.generate(ids[:, :6], **options)
    assert torch.equal(cached, model.generate(ids[:, :6], use_cache=False, **options))
    torch.save((type(model).__name__, logits, cached), folder + ".pt")
"""


@pytest.fixture(scope="module")
def elsewhere(
    make_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], Path]:
    """Narrowed models by name, and a folder with what a process without this package made of each of them.

    One process for all: importing transformers is most of the work.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    models = {name: narrow_(make_model(name)) for name in (*TINY_MODELS, *UNTABLED)} | {
        EMPTY: emptied(make_model("llama"))
    }
    for name, model in models.items():
        (folder / name).mkdir()
        save_checkpoint(model, tokenizer, folder / name)
    models[PACKED] = narrow_(make_model("llama"))
    plan = allocate(outline(models[PACKED]), "uniform", Target.from_bits(4, (4,)), {})
    compress_with_(models[PACKED], plan, Rtn(None), None)
    (folder / PACKED).mkdir()
    save_checkpoint(models[PACKED], tokenizer, folder / PACKED, form_named("packed-narrow"))
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HOME": str(folder / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *(str(folder / name) for name in models)],
        env=environment, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return models, folder


@pytest.mark.parametrize("name", [*TINY_MODELS, *UNTABLED, EMPTY, PACKED])
def test_plain_transformers_gives_the_same_logits_and_text(
    logits_of: Callable[[Any], Tensor], elsewhere: tuple[dict[str, Any], Path], name: str
) -> None:
    models, folder = elsewhere
    class_name, logits, tokens = torch.load(folder / f"{name}.pt")
    assert class_name == f"Narrow{type(models[name]).__name__}"
    assert torch.equal(logits, logits_of(models[name]))
    expected = models[name].generate(PREFIX, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("name", [EMPTY, PACKED])
def test_what_is_empty_or_packed_loads_with_ours_too(
    logits_of: Callable[[Any], Tensor], elsewhere: tuple[dict[str, Any], Path], name: str
) -> None:
    models, folder = elsewhere
    again = load_model(str(folder / name)).model
    assert torch.equal(logits_of(again), logits_of(models[name]))


def test_an_empty_sublayer_never_becomes_a_random_one(elsewhere: tuple[dict[str, Any], Path]) -> None:
    _, folder = elsewhere
    config = json.loads((folder / EMPTY / "config.json").read_text())
    assert config["per_layer_config"] == {"1": {"skip": ["self_attn"]}}
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(folder / EMPTY)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_without_remote_code_plain_transformers_refuses(
    stored: Callable[..., tuple[Any, Path]], name: str
) -> None:
    _, folder = stored(name, heads=False, block=2)
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 61}),
        ("gpt2", {"n_head": 3, "n_inner": 125}),
        ("opt", {"num_attention_heads": 3, "ffn_dim": 61}),
        ("bloom", {"n_head": 3}),
        ("falcon_grouped", {"num_attention_heads": 2, "num_kv_heads": 1, "ffn_hidden_size": 125}),
    ],
)
def test_the_config_says_the_widths_in_the_words_of_its_family(
    stored: Callable[..., tuple[Any, Path]], name: str, expected: dict[str, int]
) -> None:
    model, folder = stored(name)
    config = json.loads((folder / "config.json").read_text())
    assert config["per_layer_config"]["0"] == expected
    assert config["allow_global_per_layer_attribute_access"] is True
    assert config["architectures"] == [f"Narrow{type(model).__name__}"]
    assert config["auto_map"] == {"AutoModelForCausalLM": f"modeling_narrow.Narrow{type(model).__name__}"}
    tensors = load_file(folder / "model.safetensors")
    for index, widths in enumerate(config[CONFIG_KEY]["widths"]):
        for linear, (rows, columns) in widths["linears"].items():
            shape = tensors[f"{config[CONFIG_KEY]['blocks']}.{index}.{linear}.weight"].shape
            assert shape == ((columns, rows) if name == "gpt2" else (rows, columns))


def test_a_vision_models_widths_stand_with_its_text_part(stored: Callable[..., tuple[Any, Path]]) -> None:
    _, folder = stored("gemma3_with_vision")
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["per_layer_config"]["1"] == {"intermediate_size": 59}
    assert "per_layer_config" not in config
    assert config[CONFIG_KEY]["blocks"] == "model.language_model.layers"


def test_untouched_blocks_stay_stock(
    logits_of: Callable[[Any], Tensor], stored: Callable[..., tuple[Any, Path]]
) -> None:
    model, folder = stored("llama", block=2)
    config = json.loads((folder / "config.json").read_text())
    assert config[CONFIG_KEY]["widths"][:2] == [None, None]
    assert list(config["per_layer_config"]) == ["2"]
    again = load_model(str(folder)).model
    assert [hasattr(block, "narrow_widths") for block in again.model.layers] == [False, False, True]
    assert torch.equal(logits_of(again), logits_of(model))


def test_tied_embeddings_stay_tied(
    logits_of: Callable[[Any], Tensor],
    make_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    model = make_model("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    narrow_(model)
    save_checkpoint(model, tokenizer, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = load_model(str(tmp_path)).model
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(logits_of(again), logits_of(model))


def test_the_same_model_gives_the_same_bytes_and_is_not_changed(
    stored: Callable[..., tuple[Any, Path]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model, folder = stored()
    before, kind = model.config.to_dict(), type(model)
    for name in ("again", "loaded"):
        (tmp_path / name).mkdir()
    save_checkpoint(model, tokenizer, tmp_path / "again")
    assert model.config.to_dict() == before
    assert type(model) is kind
    save_checkpoint(load_model(str(folder)).model, tokenizer, tmp_path / "loaded")
    assert files_of(tmp_path / "again") == files_of(folder) == files_of(tmp_path / "loaded")


@pytest.mark.usefixtures("copied_modules")
def test_what_remote_code_loaded_is_saved_alike(
    stored: Callable[..., tuple[Any, Path]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    _, folder = stored()
    remote = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(remote).__module__.startswith("transformers_modules")
    assert find_structure(remote).family == "llama"
    (tmp_path / "again").mkdir()
    save_checkpoint(remote, tokenizer, tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(folder)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "falcon_alibi", "gemma3_with_vision"])
def test_widths_compose_over_a_round_trip(
    logits_of: Callable[[Any], Tensor],
    stored: Callable[..., tuple[Any, Path]],
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    tmp_path: Path,
) -> None:
    model, folder = stored(name)
    again = load_model(str(folder)).model
    for narrowed in (model, again):
        narrow_(narrowed, heads=name not in {"llama", "phi3", "gemma3_with_vision"})
    assert torch.equal(logits_of(again), logits_of(model))
    (tmp_path / "twice").mkdir()
    save_checkpoint(again, tokenizer, tmp_path / "twice")
    twice = load_model(str(tmp_path / "twice")).model
    assert torch.equal(logits_of(twice), logits_of(model))
    expected = [block.narrow_widths for block in blocks_of(model)]
    assert [block.narrow_widths for block in blocks_of(twice)] == expected


@pytest.mark.parametrize("backend", [Magnitude(), Rtn(None)], ids=["magnitude", "rtn"])
def test_other_backends_work_on_what_is_left(
    logits_of: Callable[[Any], Tensor],
    stored: Callable[..., tuple[Any, Path]],
    tokenizer: PreTrainedTokenizerFast,
    backend: Any,
    tmp_path: Path,
) -> None:
    _, folder = stored()
    model = load_model(str(folder)).model
    bits = isinstance(backend, Rtn)
    target = Target.from_bits(4, (4,)) if bits else Target.from_sparsity(0.5)
    plan = allocate(outline(model), "uniform", target, {})
    compress_with_(model, plan, backend, None)
    (tmp_path / "both").mkdir()
    save_checkpoint(model, tokenizer, tmp_path / "both")
    again = load_model(str(tmp_path / "both")).model
    assert has_narrowed_blocks(again)
    assert torch.equal(logits_of(again), logits_of(model))


def test_a_class_that_transformers_lacks_is_refused_before_writing(
    make_model: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = narrow_(make_model("llama"))
    model.__class__ = type("HomeMade", (type(model),), {"__module__": "home"})
    with pytest.raises(RequestError, match="HomeMade is not a class of transformers"):
        save_checkpoint(model, tokenizer, tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_modelling_file_is_whole_python_without_us() -> None:
    text = modelling_file("LlamaForCausalLM")
    compile(text, "modeling_narrow.py", "exec")
    assert "owl_compress." not in text
