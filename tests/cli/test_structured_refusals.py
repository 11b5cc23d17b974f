"""Requests for narrower models that cannot be satisfied: one line with the remedy, and no trace left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from owl_compress.importance.estimator import measure
from owl_compress.walk.blocks import BlockVisit

WEIGHTS = "model.safetensors"
DECILM = ("--export", "decilm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--round-to", "64"), "the ratio 0.400 cannot be met with the rounding, --round-to 64: one q"),
        (("--round-to", "64"), "ask for at most 0.222, or give --round-to 46 or less"),
        (("--prune-ratio", "0.9", "--lam", "0"), "ask for at most 0.805, or give --allow-empty"),
        (("--prune-ratio", "1"), "prune-ratio: is the share removed, at least 0 and below 1"),
        (("--round-to", "65"), "--round-to 65 is more than the 64 channels of model.layers.0: give at m"),
        (("--round-to", "0"), "round-to 0 must be at least 1"),
        (("--importance", "tailor"), "unknown importance 'tailor': did you mean 'taylor'?"),
        (("--taylor-variant", "matrix"), "unknown taylor-variant 'matrix': known: element, vector"),
        (("--gradient-samples", "0"), "gradient-samples 0 must be at least 1"),
        (("--parts", "heads"), "has to be 'attention' or 'mlp' (got 'heads')"),
        (("--protect-first", "3"), "--protect-first 3 and --protect-last 0 leave none of 3 blocks to"),
        (("--protect-first", "2", "--protect-last", "1"), "leave none of 3 blocks to compress: lower them"),
        (("--protect-last", "-1"), "protect-last: has to be 0 or more (got -1)"),
        (("--skip", "*.1.mlp.up_proj"), "model.layers.1.mlp.up_proj is skipped, and both need the same w"),
        (("--uniform-width", "--protect-first", "1"), "the plan skips the block of model.layers.0"),
        (("--format", "packed"), "backend 'structured' makes none: drop it"),
        (("--scope", "row"), "backend 'structured' takes no scope; it takes: importance, taylor-variant"),
        (("--export", "gguf"), "unknown export 'gguf': known: decilm"),
        (DECILM, "export decilm is for Llama and Mistral and keeps all query heads: add parts mlp"),
        ((*DECILM, "--parts", "mlp"), "export decilm holds multiples of 256 channels, and round-to is 8: "),
        ((*DECILM, "--parts", "mlp", "--round-to", "256"), "block model.layers.0 has only 64: leave"),
    ],
)  # fmt: skip
def test_narrowing_is_refused_before_anything_is_measured(
    refused: Callable[..., str],
    prune: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.delattr(BlockVisit, "gather")
    assert message in refused(*prune, *options, "-o", "OUT")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sparsity", "0.5", "--importance", "wanda"), "'wanda' takes no importance; it takes: scope"),
        (("--sparsity", "0.5", "--repair"), "backend 'wanda' takes no repair"),
        (("--sparsity", "0.5", "--uniform-width"), "backend 'wanda' takes no uniform-width"),
        (("--sparsity", "0.5", "--backend", "structured"), "in width, these are in density: use --backend"),
        (("--prune-ratio", "0.5"), "these are in width: use --backend 'structured'"),
        (("--sparsity", "0.5", *DECILM), "--export decilm is for widths, the budget is in density: drop it"),
    ],
)
def test_what_belongs_to_another_backend(
    refused: Callable[..., str], text_options: tuple[str, ...], options: tuple[str, ...], message: str
) -> None:
    assert message in refused("run", "model", *text_options, *options, "-o", "OUT")


def test_dry_run_refuses_what_the_run_would(refused: Callable[..., str], prune: tuple[str, ...]) -> None:
    assert "cannot be met with the rounding" in refused(*prune, "--round-to", "64", "--dry-run")


def test_a_ratio_that_is_offered_can_be_met(
    done: Callable[..., Any], prune: tuple[str, ...], here: Path
) -> None:
    done(*prune, "--round-to", "64", "--prune-ratio", "0.222", "--lam", "0", "-o", "RATIO")
    done(*prune, "--round-to", "46", "--lam", "0", "-o", "ROUNDING")
    done(*prune, "--prune-ratio", "0.9", "--lam", "0", "--allow-empty", "-o", "EMPTY")
    dense = n_weights("model")
    assert n_weights("RATIO") <= 0.778 * dense
    assert n_weights("ROUNDING") <= 0.6 * dense
    assert n_weights("EMPTY") <= 0.1 * dense


def n_weights(folder: str) -> int:
    found = load_file(Path(folder) / WEIGHTS).items()
    return sum(tensor.numel() for name, tensor in found if name.endswith("_proj.weight"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 4}, "self_attn.k_proj has 1024 weights in the model and 512 in the plan"),
        ({"num_attention_heads": 8, "head_dim": 8}, "q_proj has 2048 weights in the model and 1024 in the"),
    ],
)
def test_a_plan_for_another_head_layout(
    refused: Callable[..., str],
    done: Callable[..., Any],
    save_llama: Callable[..., None],
    text_options: tuple[str, ...],
    report: Path,
    changes: dict[str, int],
    message: str,
) -> None:
    save_llama("other", **changes)
    done("allocate", report, "--prune-ratio", "0.4", "-o", "plan.json", "--quiet")
    options = ("--plan", "plan.json", *text_options, "--backend", "structured", "--round-to", "8")
    refusal = refused("compress", "other", *options, "-o", "OUT")
    assert message in refusal
    assert "allocate it from this model's own report" in refusal


def test_a_plan_that_cannot_be_met(
    refused: Callable[..., str], done: Callable[..., Any], text_options: tuple[str, ...], report: Path
) -> None:
    done("allocate", report, "--prune-ratio", "0.4", "-o", "plan.json", "--quiet")
    options = ("--plan", "plan.json", *text_options, "--backend", "structured")
    assert "cannot be met with the rounding" in refused("compress", "model", *options, "-o", "OUT")
    assert "export decilm holds multiples" in refused(
        "compress", "model", *options, *DECILM, "--round-to", "8", "-o", "OUT"
    )
    done("allocate", report, "--sparsity", "0.4", "-o", "density.json", "--quiet")
    options = ("--plan", "density.json", *text_options)
    assert "--export decilm is for widths" in refused("compress", "model", *options, *DECILM, "-o", "OUT")


def test_decilm_of_another_family(
    refused: Callable[..., str],
    here: Path,
    make_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    prune: tuple[str, ...],
) -> None:
    make_model("gemma2").save_pretrained(here / "gemma")
    tokenizer.save_pretrained(here / "gemma")
    message = refused("run", "gemma", *prune[2:], "--round-to", "256", "--parts", "mlp", *DECILM, "-o", "OUT")
    assert message.startswith("the model cannot be exported as DeciLM: gemma2 models are none of llama and")


def test_decilm_of_a_model_that_lost_heads_before(
    refused: Callable[..., str],
    done: Callable[..., Any],
    save_llama: Callable[..., None],
    prune: tuple[str, ...],
) -> None:
    save_llama("wide", intermediate_size=512)
    done("run", "wide", *prune[2:], "-o", "FEWER")
    options = (*prune[2:], "--round-to", "256", "--parts", "mlp", *DECILM)
    assert "it keeps all 4 query heads, and block model.layers" in refused(
        "run", "FEWER", *options, "-o", "OUT"
    )
    done("run", "wide", *options, "-o", "EXPORTED")
    assert "EXPORTED is a DeciLM checkpoint, for vLLM and llama.cpp" in refused(
        "eval", "EXPORTED", "--data", "text.txt"
    )


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("gpt2", ("--round-to", "8"), "cannot be stored as a stock checkpoint of uniform width"),
        ("bloom", ("--round-to", "8", "--parts", "mlp"), "bloom models has no key for"),
        ("opt", ("--round-to", "8"), "leave --uniform-width away, or compress with --parts mlp"),
    ],
)
def test_uniform_width_that_no_configuration_of_the_family_expresses_is_refused_before_work(
    here: Path,
    refused: Callable[..., str],
    make_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    prune: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    make_model(family).save_pretrained(here / "whole")
    tokenizer.save_pretrained(here / "whole")
    monkeypatch.delattr(BlockVisit, "gather")
    assert message in refused("run", "whole", *prune[2:], *options, "--uniform-width", "-o", "OUT")


def test_uniform_width_after_widths_that_differ(
    refused: Callable[..., str], done: Callable[..., Any], prune: tuple[str, ...]
) -> None:
    done(*prune, "-o", "OUT")
    message = refused("run", "OUT", *prune[2:], "--uniform-width", "-o", "STOCK")
    assert message.startswith("--uniform-width needs blocks of one shape, and model.layers.1 differs")


def cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


def lose_a_shard(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00002-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()


def widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["owl_compress_widths"]["widths"][1]["linears"]["mlp.up_proj"][0] += 8
    (folder / "config.json").write_text(json.dumps(config))


def overreach(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["owl_compress_widths"]["widths"][1]["linears"]["mlp.up_proj"][0] = 72
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_short, "OUT/model.safetensors is corrupt or truncated"),
        (lose_a_shard, "model-00002-of-00002.safetensors"),
        (widen, "tensor 'model.layers.1.mlp.up_proj.weight' has shape"),
        (overreach, "block 1: 'mlp.up_proj' is (72, 32), larger than the (64, 32) of the model"),
    ],
)
def test_a_narrowed_checkpoint_that_is_broken(
    refused: Callable[..., str],
    done: Callable[..., Any],
    prune: tuple[str, ...],
    change: Callable[[Path], None],
    message: str,
) -> None:
    done(*prune, "-o", "OUT")
    change(Path("OUT"))
    assert message in refused("eval", "OUT", "--data", "other.txt", "--seq-len", "32")
    assert message in refused("run", "OUT", *prune[2:], "-o", "AGAIN")


@pytest.fixture
def olmo2(here: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """A model of a family that no table of ours knows, with a norm over all heads."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": len(tokenizer)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.Olmo2Config(**sizes, **ids, max_position_embeddings=128)
        transformers.Olmo2ForCausalLM(config).save_pretrained(here / "olmo2")
    tokenizer.save_pretrained(here / "olmo2")
    return "olmo2"


def test_heads_that_depend_on_each_other(
    refused: Callable[..., str], done: Callable[..., Any], prune: tuple[str, ...], olmo2: str
) -> None:
    message = refused("run", olmo2, *prune[2:], "-o", "OUT")
    assert message.startswith("attention of model.layers.0 is not recognised: no table says where the heads")
    assert message.endswith("use --parts mlp")
    message = refused("run", olmo2, *prune[2:], "--parts", "attention", "-o", "OUT")
    assert message.startswith("--parts attention: no linear of family 'olmo2' is known to be of it")
    done("run", olmo2, *prune[2:], "--parts", "mlp", "-o", "OUT")
    before, after = load_file("olmo2/model.safetensors"), load_file("OUT/model.safetensors")
    cut = {name for name in before if before[name].shape != after[name].shape}
    assert cut == {name for name in before if ".mlp." in name}
    assert sum(after[name].numel() for name in cut) <= 0.6 * sum(before[name].numel() for name in cut)
    done("eval", "OUT", "--data", "other.txt", "--seq-len", "32", "--quiet")


def test_heads_of_an_architecture_that_nobody_knows(
    make_model: Callable[[str], Any], make_windows: Callable[..., Any]
) -> None:
    roles = [
        linear.role
        for block in measure(make_model("unknown"), make_windows()).blocks
        for linear in block.linears
    ]
    assert roles == ["mlp.fc1", "mlp.fc2"] * 3
