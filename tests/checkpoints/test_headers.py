"""What config.json announces is held against the headers of the files before anything is allocated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.checkpoints import reading
from owl_compress.checkpoints.headers import rehearsal
from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.tensors import TensorHeader, tensor_headers
from owl_compress.checkpoints.verification import verify
from owl_compress.errors import RequestError

UP = "model.layers.1.mlp.up_proj.weight"
MOE = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
}  # fmt: skip


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_weights(folder: Path, changes: dict[str, torch.Tensor]) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | changes, file, metadata={"format": "pt"})


@pytest.fixture
def never_in_earnest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading anywhere but on the meta device fails."""
    load = LlamaForCausalLM.from_pretrained

    def rehearse_only(*positional: Any, **named: Any) -> Any:
        assert named.get("device_map") == "meta", "a tensor was to be read"
        return load(*positional, **named)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", rehearse_only)


def test_headers_are_read_without_tensors(checkpoint: Path) -> None:
    headers = tensor_headers(checkpoint)
    assert headers[UP] == TensorHeader("F32", (24, 16))
    assert len(headers) == 2 * 9 + 3


@pytest.mark.usefixtures("never_in_earnest")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 6_000_000}, r"\(32, 16\) in the file, \(6000000, 16\) by config.json"),
        ({"num_hidden_layers": 3_000}, "announces 3,000 blocks .*the files hold 21 tensors"),
        ({"num_hidden_layers": 3}, r"'model.layers.2.input_layernorm.weight' is missing"),
        ({"intermediate_size": 10**9}, r"\(16, 1000000000\) by config.json"),
        ({"head_dim": 10**6}, "by config.json"),
    ],
)
def test_a_configuration_larger_than_the_files_is_refused_before_anything_is_allocated(
    checkpoint: Path, changes: dict[str, int], words: str
) -> None:
    edit_config(checkpoint, **changes)
    start = perf_counter()
    with pytest.raises(RequestError, match=words):
        load_model(str(checkpoint))
    assert perf_counter() - start < 10


@pytest.mark.parametrize(
    "dtype",
    [torch.int32, torch.uint8, torch.int8, torch.bool, torch.int64, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)
def test_a_weight_that_is_stored_as_something_else_than_a_float_is_named(
    refusal: Callable[..., str], checkpoint: Path, dtype: torch.dtype
) -> None:
    edit_weights(checkpoint, {UP: torch.ones(24, 16).to(dtype)})
    message = refusal(checkpoint)
    assert f"tensor '{UP}' is stored as " in message
    assert "(1 such)" in message
    assert "quantization_config" in message


def test_integers_that_the_model_does_not_use_are_no_matter(checkpoint: Path) -> None:
    edit_weights(checkpoint, {"model.position_ids": torch.arange(8), "other.weight": torch.arange(4)})
    load_model(str(checkpoint))


def test_weights_of_a_body_are_looked_at_under_their_shorter_names(
    small_llama: LlamaForCausalLM, small_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    small_llama.config.tie_word_embeddings = True
    small_llama.model.save_pretrained(tmp_path)
    small_tokenizer.save_pretrained(tmp_path)
    load_model(str(tmp_path))
    edit_weights(tmp_path, {"layers.0.mlp.up_proj.weight": torch.ones(24, 16, dtype=torch.int32)})
    with pytest.raises(RequestError, match=r"'layers\.0\.mlp\.up_proj\.weight' is stored as I32"):
        load_model(str(tmp_path))


@pytest.fixture
def mixture(small_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A Mixtral, whose experts lie one by one in the file and fused in memory."""
    save_checkpoint(
        AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **MOE)), small_tokenizer, tmp_path
    )
    return tmp_path


def test_tensors_that_are_joined_while_loading_are_checked_too(mixture: Path) -> None:
    load_model(str(mixture))
    assert any(".experts.3." in name for name in tensor_headers(mixture))
    expert = "model.layers.0.mlp.experts.2.w1.weight"
    name = next(name for name in tensor_headers(mixture) if name.endswith(expert.partition(".mlp")[2][4:]))
    edit_weights(mixture, {name: torch.ones(24, 16, dtype=torch.int8)})
    with pytest.raises(RequestError, match=r"experts\.2\.w1\.weight' is stored as I8"):
        load_model(str(mixture))


def test_a_mixture_of_more_experts_than_the_files_hold_is_refused(mixture: Path) -> None:
    edit_config(mixture, num_local_experts=100_000)
    with pytest.raises(RequestError, match=r"by config\.json"):
        load_model(str(mixture))


@pytest.mark.parametrize("form", ["dense", "packed", "narrow", "packed-narrow"])
def test_every_form_is_rehearsed(
    form: str, saved: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def noting(rehearse: Callable[[], Any], source: str) -> Any:
        seen.append(rehearsal(rehearse, source))
        return seen[-1]

    monkeypatch.setattr(reading, "rehearsal", noting)
    load_model(str(saved(form).folder))
    ((rehearsed, info),) = seen
    assert not info["unexpected_keys"]
    assert {parameter.device.type for parameter in rehearsed.parameters()} == {"meta"}


@pytest.mark.parametrize("form", ["dense", "narrow"])
def test_blocks_without_tensors_are_refused_at_every_door(
    form: str, saved: Callable[[str], Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(saved(form).folder, tmp_path / "copy")
    edit_config(folder, num_hidden_layers=10**7, layer_types=None)
    for door in (lambda path: load_model(str(path)), verify):
        with pytest.raises(RequestError, match="announces 10,000,000 blocks"):
            door(folder)


def test_a_rehearsal_that_fails_leaves_the_word_to_the_loading(checkpoint: Path) -> None:
    def fail() -> Any:
        raise TypeError("no meta device for this one")

    assert rehearsal(fail, "x") is None
    assert CheckpointSource.of_folder(checkpoint).snapshot == checkpoint
