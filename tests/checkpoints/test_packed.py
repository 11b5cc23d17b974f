"""Packed checkpoints: transformers loads what was in memory; what cannot be packed is refused."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from owl_compress.allocators import Target, allocate
from owl_compress.backends.gptq import Gptq
from owl_compress.backends.rtn import Rtn
from owl_compress.checkpoints.loading import LoadedModel, load_model
from owl_compress.checkpoints.packed import is_packed, packed_checkpoint
from owl_compress.checkpoints.packed_trial import find_fit
from owl_compress.compression.driver import compress_with_
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.result import Result
from owl_compress.errors import RequestError
from owl_compress.forms.codes import CodeFormat
from owl_compress.importance.estimator import outline
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.folder import save
from owl_compress.pipeline.stages import evaluate

pytest.importorskip("compressed_tensors")

PACKS = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_with_vision", "phi3", "opt",
    "gpt_neox", "bloom",
)  # fmt: skip
CANNOT_PACK = ("gpt2", "falcon", "falcon_grouped", "falcon_alibi")

Made = tuple[LoadedModel, Result, Plan]


def plan_for(model: Any, bits: float = 3.0, choices: tuple[int, ...] = (2, 3, 4)) -> Plan:
    return allocate(outline(model), "random", Target.from_bits(bits, choices), {"seed": 1})


@pytest.fixture
def quantize(
    make_model: Callable[[str], Any],
    make_windows: Callable[..., TokenWindows],
    tokenizer: PreTrainedTokenizerFast,
) -> Callable[..., Made]:
    """A function that quantizes a tiny model with 2, 3 and 4 bits by block."""

    def make(name: str = "llama", backend: Rtn | Gptq | None = None, **target: Any) -> Made:
        model = make_model(name)
        plan = plan_for(model, **target)
        backend = backend or Rtn(16)
        windows = make_windows() if backend.statistic else None
        result = compress_with_(model, plan, backend, windows)
        return LoadedModel(model, tokenizer, name, name, None, "float32"), result, plan

    return make


@pytest.fixture
def folder(quantize: Callable[..., Made], tmp_path: Path) -> Path:
    """A packed checkpoint of the tiny Llama."""
    save(*quantize(), tmp_path / "OUT")
    return tmp_path / "OUT"


@pytest.mark.parametrize(
    "backend",
    [
        Rtn(16),
        Rtn(None),
        Rtn(32, mse=True),
        Gptq(16),
        Gptq(None),
        Gptq(16, activation_order=True),
    ],
    ids=repr,
)
def test_plain_transformers_gives_the_same_logits(
    logits_of: Callable[[Any], Tensor],
    quantize: Callable[..., Made],
    backend: Rtn | Gptq,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded, result, plan = quantize(backend=backend)
    assert {budget.value for budget in plan.budgets} == {2.0, 3.0, 4.0}
    save(loaded, result, plan, tmp_path / "OUT")
    expected = logits_of(loaded.model)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "OUT")
    assert float((logits_of(plain) - expected).abs().max()) == 0.0
    capsys.readouterr()
    ours = load_model(str(tmp_path / "OUT")).model
    assert capsys.readouterr() == ("", "")
    assert torch.equal(logits_of(ours), expected)


def test_every_width_from_two_to_eight_survives(
    logits_of: Callable[[Any], Tensor], quantize: Callable[..., Made], tmp_path: Path
) -> None:
    for bits in range(2, 9):
        loaded, result, plan = quantize(bits=bits, choices=(bits,))
        save(loaded, result, plan, tmp_path / f"{bits}")
        assert torch.equal(logits_of(load_model(str(tmp_path / f"{bits}")).model), logits_of(loaded.model))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_survives(
    make_model: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast, dtype: str, tmp_path: Path
) -> None:
    model = make_model("llama").to(getattr(torch, dtype))
    plan = plan_for(model, 5.0, (2, 8))
    result = compress_with_(model, plan, Rtn(16), None)
    save(LoadedModel(model, tokenizer, "x", "x", None, dtype), result, plan, tmp_path / "OUT")
    again = load_model(str(tmp_path / "OUT"))
    assert again.dtype == dtype
    assert all(torch.equal(again.model.get_parameter(n), p) for n, p in model.named_parameters())


@pytest.mark.parametrize("family_name", [*PACKS, *CANNOT_PACK])
def test_every_family_is_stored_packed_or_refused_and_always_dense(
    logits_of: Callable[[Any], Tensor], quantize: Callable[..., Made], family_name: str, tmp_path: Path
) -> None:
    loaded, result, plan = quantize(family_name)
    expected = logits_of(loaded.model)
    if family_name in CANNOT_PACK:
        with pytest.raises(RequestError, match=r"only torch\.nn\.Linear can be packed: use --format dense"):
            save(loaded, result, plan, tmp_path / "packed")
        assert not (tmp_path / "packed").exists()
    else:
        save(loaded, result, plan, tmp_path / "packed")
        assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "packed")), expected)
    save(loaded, result, plan, tmp_path / "dense", keeps_codes=False)
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "dense")), expected)


def test_files_hold_the_asked_bits_and_describe_them(
    quantize: Callable[..., Made], make_model: Callable[[str], Any], tmp_path: Path
) -> None:
    loaded, result, plan = quantize()
    in_memory = result.totals.bits_per_weight
    result = save(loaded, result, plan, tmp_path / "OUT")
    tensors = load_file(tmp_path / "OUT" / "model.safetensors")
    description = json.loads((tmp_path / "OUT" / "config.json").read_text())["quantization_config"]
    assert "sparsity_config" not in description
    assert list(description["config_groups"]) == ["group_0", "group_1", "group_2"]
    assert description["ignore"] == ["lm_head"]
    widths = {}
    for group in description["config_groups"].values():
        assert group["weights"]["symmetric"]
        assert "actorder" not in group["weights"]
        widths |= dict.fromkeys(group["targets"], group["weights"]["num_bits"])
    assert widths == {budget.name: budget.value for budget in plan.budgets}
    assert sum(len(group["targets"]) for group in description["config_groups"].values()) == len(widths)
    for name, bits in widths.items():
        shape = tensors[f"{name}.weight_shape"].tolist()
        assert tensors[f"{name}.weight_packed"].shape == (shape[0], math.ceil(shape[1] * bits / 32))
        assert tensors[f"{name}.weight_scale"].shape == (shape[0], shape[1] // 16)
        assert f"{name}.weight" not in tensors
    size = (tmp_path / "OUT" / "model.safetensors").stat().st_size
    payload = sum(tensor.nbytes for tensor in tensors.values())
    assert result.totals.bytes_on_disk == size
    assert result.totals.bits_per_weight == 8 * size / result.totals.n_params_after
    shapes = 16 * len(widths)
    assert payload - shapes == pytest.approx(in_memory * result.totals.n_params_after / 8)
    dense = make_model("llama").state_dict()
    assert all(torch.equal(tensors[name], dense[name]) for name in dense.keys() & tensors.keys())


def test_the_model_in_memory_is_left_as_it_was(quantize: Callable[..., Made], tmp_path: Path) -> None:
    loaded, result, plan = quantize()
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    save(loaded, result, plan, tmp_path / "packed")
    assert not hasattr(loaded.model.config, "quantization_config")
    after = loaded.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    save(loaded, result, plan, tmp_path / "dense", keeps_codes=False)
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())


def test_dense_files_keep_the_bits_of_the_codes_in_the_totals(
    quantize: Callable[..., Made], tmp_path: Path
) -> None:
    loaded, result, plan = quantize()
    saved = save(loaded, result, plan, tmp_path / "OUT", keeps_codes=False)
    assert saved.totals.bits_per_weight == result.totals.bits_per_weight < 32
    assert saved.totals.bytes_on_disk > 4 * saved.totals.n_params_after


def test_a_packed_checkpoint_loads_as_an_ordinary_model(
    logits_of: Callable[[Any], Tensor],
    folder: Path,
    quantize: Callable[..., Made],
    prose: str,
    tmp_path: Path,
) -> None:
    loaded = load_model(str(folder))
    original = quantize()[0].model
    assert {n: p.shape for n, p in loaded.model.named_parameters()} == {
        n: p.shape for n, p in original.named_parameters()
    }
    assert find_structure(loaded.model).linear_sizes == find_structure(original).linear_sizes
    text = tmp_path / "text.txt"
    text.write_text(prose)
    record = evaluate(loaded, str(text), seq_len=64)
    assert record.n_params == sum(parameter.numel() for parameter in original.parameters())
    # It is compressed again and saved like any other.
    plan = allocate(outline(loaded.model), "uniform", Target.from_sparsity(0.5))
    from owl_compress.backends.magnitude import Magnitude

    result = compress_with_(loaded.model, plan, Magnitude(), None)
    save(loaded, result, plan, tmp_path / "sparse")
    assert not is_packed(transformers.AutoConfig.from_pretrained(tmp_path / "sparse").to_dict())
    assert torch.equal(logits_of(load_model(str(tmp_path / "sparse")).model), logits_of(loaded.model))


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_shape"])
def test_a_missing_tensor_is_named(folder: Path, part: str) -> None:
    name = f"model.layers.1.mlp.up_proj.{part}"
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match=rf"{name}.*is missing") as refusal:
        load_model(str(folder))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_shape"])
def test_a_tensor_of_the_wrong_shape_is_named(folder: Path, part: str) -> None:
    name = f"model.layers.1.mlp.up_proj.{part}"
    tensors = load_file(folder / "model.safetensors")
    wrong = torch.tensor([3, 5]) if part == "weight_shape" else tensors[name][:, :1].contiguous()
    save_file(tensors | {name: wrong}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match=rf"{name}") as refusal:
        load_model(str(folder))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("dtype", "shown"), [(torch.float32, "F32"), (torch.bfloat16, "BF16")])
def test_codes_that_were_taken_for_weights_are_refused(folder: Path, dtype: torch.dtype, shown: str) -> None:
    name = "model.layers.1.mlp.up_proj.weight_packed"
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: tensors[name].to(dtype)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match=rf"{name}' in .* holds packed codes as {shown}, which keeps not"):
        load_model(str(folder))


def test_asymmetric_codes_are_refused_with_the_remedy(quantize: Callable[..., Made], tmp_path: Path) -> None:
    loaded, result, plan = quantize(backend=Rtn(16, symmetric=False))
    with pytest.raises(RequestError, match=r"asymmetric codes cannot be packed.*--format dense"):
        save(loaded, result, plan, tmp_path / "OUT")
    save(loaded, result, plan, tmp_path / "OUT", keeps_codes=False)


def test_weights_changed_since_are_refused(quantize: Callable[..., Made]) -> None:
    loaded, _, _ = quantize()
    loaded.model.model.layers[2].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(RequestError, match=r"layers\.2\.mlp\.up_proj was changed after it was quantized"):
        packed_checkpoint(loaded.model)


def test_a_model_without_codes_is_refused(make_model: Callable[[str], Any]) -> None:
    with pytest.raises(RequestError, match="nothing to pack"):
        packed_checkpoint(make_model("llama"))


def test_without_compressed_tensors_the_remedy_is_named(
    quantize: Callable[..., Made], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = quantize()
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    for attempt in (lambda: save(*made, tmp_path / "again"), lambda: load_model(str(folder))):
        with pytest.raises(RequestError, match=r"pip install 'owl-compress\[quant\]'"):
            attempt()


@pytest.mark.parametrize("installed", ["0.19.0", "0.9"])
def test_a_compressed_tensors_that_is_too_old_to_read_with_is_named(
    folder: Path, installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owl_compress.checkpoints.packed_package.version", lambda _: installed)
    with pytest.raises(RequestError) as refused:
        load_model(str(folder))
    assert str(refused.value) == (
        f"packed weights are read with compressed-tensors 0.20 or newer, not {installed}: "
        "pip install 'owl-compress[quant]'"
    )


def test_linears_left_out_of_the_plan_are_ignored_by_name(
    make_model: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = make_model("llama")
    target = Target.from_bits(3, (2, 3, 4), skips=("*.down_proj",))
    plan = allocate(outline(model), "uniform", target)
    compress_with_(model, plan, Rtn(16), None)
    description = packed_checkpoint(model).quantization_config
    assert description["ignore"] == [f"model.layers.{i}.mlp.down_proj" for i in range(3)] + ["lm_head"]


def test_a_tied_output_layer_is_stored_once(
    logits_of: Callable[[Any], Tensor], tokenizer: PreTrainedTokenizerFast, tiny_llama: Any, tmp_path: Path
) -> None:
    tiny_llama.config.tie_word_embeddings = True
    tiny_llama.tie_weights()
    plan = plan_for(tiny_llama)
    result = compress_with_(tiny_llama, plan, Rtn(16), None)
    save(LoadedModel(tiny_llama, tokenizer, "x", "x", None, "float32"), result, plan, tmp_path / "OUT")
    assert "lm_head.weight" not in load_file(tmp_path / "OUT" / "model.safetensors")
    assert torch.equal(logits_of(load_model(str(tmp_path / "OUT")).model), logits_of(tiny_llama))


def test_the_card_tells_how_the_weights_are_stored(
    quantize: Callable[..., Made], folder: Path, tmp_path: Path
) -> None:
    card = (folder / "README.md").read_text()
    assert "pip install transformers compressed-tensors" in card
    assert "one scale for every 16 consecutive inputs" in card
    assert "`pack-quantized`" in card
    save(*quantize(), tmp_path / "dense", keeps_codes=False)
    card = (tmp_path / "dense" / "README.md").read_text()
    assert "compressed-tensors" not in card
    assert "stored dequantised" in card


@pytest.mark.parametrize("part", ["input_activations", "output_activations"])
def test_quantized_activations_are_refused_before_anything_is_loaded(
    folder: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folder / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group[part] = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    with pytest.raises(RequestError, match=r"\(compressed-tensors, with activations quantized too\)"):
        load_model(str(folder))


def test_the_trial_is_silent_about_groups_that_do_not_divide(
    tiny_llama: transformers.LlamaForCausalLM,
) -> None:
    """Who asked for them is told so by the line that refuses them, and by nothing before it."""
    logger = pytest.importorskip("loguru").logger
    said: list[str] = []
    handle = logger.add(said.append)
    try:
        find_fit(tiny_llama, list(find_structure(tiny_llama).linear_sizes), CodeFormat(24, symmetric=True))
    finally:
        logger.remove(handle)
    assert said == []
