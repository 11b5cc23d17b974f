"""Loading narrowed checkpoints: the folder's code is never run, and what does not fit is one clear line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.errors import RequestError
from owl_compress.forms.modeling_narrow import CONFIG_KEY
from owl_compress.forms.narrowing import KeptUnits, keep_units_
from owl_compress.models.anatomy import find_anatomy
from owl_compress.models.structure import find_structure


@pytest.fixture
def narrow(make_model: Callable[[str], Any]) -> Any:
    """The tiny Llama with one key-value head of two, and 61, 59 and 57 channels of 64 in its blocks."""
    model = make_model("llama")
    for index, site in enumerate(find_structure(model).blocks):
        kept = KeptUnits(torch.arange(3 + 2 * index, 64), torch.arange(2, 4), torch.arange(1, 2))
        keep_units_(site, find_anatomy(site), kept)
    return model


@pytest.fixture
def folder(narrow: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """The checkpoint of `narrow`."""
    (tmp_path / "OUT").mkdir()
    save_checkpoint(narrow, tokenizer, tmp_path / "OUT")
    return tmp_path / "OUT"


def test_our_loader_never_runs_the_modelling_file(
    logits_of: Callable[[Any], Tensor], narrow: Any, folder: Path
) -> None:
    (folder / "modeling_narrow.py").write_text("raise SystemExit('this file was run')\n")
    for trusting in (False, True):
        again = load_model(str(folder), trust_remote_code=trusting).model
        assert torch.equal(logits_of(again), logits_of(narrow))


Change = Callable[[dict[str, Any]], None]


def edited(folder: Path, change: Change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def change_config(**values: Any) -> Change:
    return lambda config: config.update(values)


def change_widths(**values: Any) -> Change:
    return lambda config: config[CONFIG_KEY].update(values)


def change_block(index: int, part: str, value: Any) -> Change:
    """Put `value` into a part of the widths of one block, beside what is there."""

    def change(config: dict[str, Any]) -> None:
        block = config[CONFIG_KEY]["widths"][index]
        block[part] = block.get(part, {}) | value if isinstance(value, dict) else value

    return change


UP = "mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_config(**{CONFIG_KEY: 7}), "owl_compress_widths in config.json"),
        (change_widths(blocks="model.stages"), "there is no 'model.stages'"),
        (change_widths(blocks="model.norm"), "widths for 3 blocks, 'model.norm' has no"),
        (change_widths(widths=[None, None]), "widths for 2 blocks, 'model.layers' has 3"),
        (change_block(0, "colour", 1), "colour"),
        (change_block(0, "linears", {"extra": [1, 2]}), "block 0: 'extra' is no linear"),
        (change_block(0, "linears", {UP: [1]}), UP),
        (change_block(0, "linears", {UP: ["8", 8]}), UP),
        (change_block(0, "linears", {UP: [-8, 8]}), UP),
        (change_block(0, "linears", {UP: [65, 32]}), "larger than the (64, 32) of the model"),
        (change_block(0, "linears", {UP: [8, 32]}), "tensor 'model.layers.0.mlp.up_proj.weight' has shape"),
        (change_block(2, "attributes", {"mlp.forward": 1}), "block 2: 'mlp.forward'"),
        (change_block(2, "attributes", {"self_attn.head_dim": 0}), "must be from 1 to the 8 of the model"),
        (change_block(2, "attributes", {"self_attn.head_dim": -8}), "must be from 1 to the 8 of the model"),
        (change_block(2, "attributes", {"self_attn.head_dim": 9}), "must be from 1 to the 8 of the model"),
        (change_block(2, "attributes", {"self_attn.head_dim": True}), "self_attn.head_dim"),
        (change_block(2, "attributes", {"self_attn.head_dim": 4}), "the blocks cannot run with these widths"),
        (change_block(2, "attributes", {"self_attn.scaling": 0.5}), "'self_attn.scaling' is no number"),
        (change_block(2, "attributes", {"self_attn.is_causal": False}), "'self_attn.is_causal' is no number"),
        (change_block(1, "empty", ["mlp"]), "'mlp' is said to be empty, and 'mlp.gate_proj' is not"),
        (change_block(1, "empty", ["self_attn"]), "'self_attn' is said to be empty"),
        (change_block(1, "empty", ["input_layernorm"]), "'input_layernorm' is said to be empty"),
        (change_block(1, "config", {"self_attn": {"hidden_size": 99}}), "must be from 1 to the 32"),
        (change_block(2, "attributes", {"no.where": 1}), "block 2: 'no.where'"),
        (change_block(1, "empty", ["ears"]), "block 1: 'ears'"),
        (change_block(1, "config", {"mlp.act_fn": {"x": 1}}), "block 1: 'mlp.act_fn'"),
        (change_block(1, "alibi_heads", {"self_attn": {"kept": [4], "of": 4}}), "keeps head 4 of 4"),
        (change_config(architectures=["NarrowNothing"]), "no causal model 'Nothing'"),
        (change_config(architectures=["NarrowLlamaModel"]), "no causal model 'LlamaModel'"),
        (change_widths(widths=[None, None, None]), "in the file"),
    ],
)
def test_widths_that_do_not_fit_are_one_line(folder: Path, change: Change, message: str) -> None:
    edited(folder, change)
    with pytest.raises(RequestError) as refused:
        load_model(str(folder))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_broken_tensors_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, weights, {"format": "pt"})
    with pytest.raises(RequestError, match=f"tensor '{name}' is missing"):
        load_model(str(folder))
    save_file(tensors | {name: torch.zeros(2, 2)}, weights, {"format": "pt"})
    with pytest.raises(RequestError, match=rf"tensor '{name}' has shape \(2, 2\)"):
        load_model(str(folder))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RequestError, match="corrupt or truncated"):
        load_model(str(folder))


def test_sharded_checkpoints_load(
    logits_of: Callable[[Any], Tensor], narrow: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_checkpoint(narrow, tokenizer, tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(logits_of(load_model(str(tmp_path)).model), logits_of(narrow))
    shutil.move(shards[0], tmp_path / "elsewhere")
    with pytest.raises(RequestError, match="is missing"):
        load_model(str(tmp_path))
