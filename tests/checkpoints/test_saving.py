"""Saving: whole, the same each time, and what transformers objects to is kept."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.tensors import tensor_files, tensor_from_checkpoint
from owl_compress.documents.output_folders import output_folder
from owl_compress.errors import RequestError


def test_saving_twice_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_model(str(checkpoint))
    for name in ("one", "two"):
        with output_folder(tmp_path / name) as temporary:
            save_checkpoint(loaded.model, loaded.tokenizer, temporary)
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two")
    )
    assert first == second
    assert first["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()


def test_a_generation_config_that_transformers_refuses_is_kept_and_noted(
    small_llama: LlamaForCausalLM, small_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    generation = small_llama.generation_config
    generation.temperature, generation.do_sample = 0.6, False
    with output_folder(tmp_path / "out") as temporary:
        (note,) = save_checkpoint(small_llama, small_tokenizer, temporary)
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved["temperature"] == 0.6
    assert "temperature" in note
    assert "\n" not in note
    assert small_llama.generation_config is generation
    assert load_model(str(tmp_path / "out")).model.generation_config.temperature == 0.6


def test_tied_weights_are_saved_once(tmp_path: Path, small_tokenizer: PreTrainedTokenizerFast) -> None:
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1)
    model = GPT2LMHeadModel(config).eval()
    with output_folder(tmp_path / "out") as temporary:
        save_checkpoint(model, small_tokenizer, temporary)
    assert "lm_head.weight" not in tensor_files(tmp_path / "out")
    assert tensor_from_checkpoint(tmp_path / "out", "transformer.h.0.attn.c_attn").numel() == 768
    tokens = torch.arange(10)[None]
    assert torch.equal(load_model(str(tmp_path / "out")).model(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    "failure",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    small_llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise failure

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(RequestError, match="disk full"), output_folder(tmp_path / "out") as temporary:
        save_checkpoint(small_llama, None, temporary)
    assert list(tmp_path.iterdir()) == []
