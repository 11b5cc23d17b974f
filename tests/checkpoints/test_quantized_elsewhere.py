"""Checkpoints that other software quantized are named and refused before anything of them is loaded."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.quantized_elsewhere import check_names, quantized_tensor
from owl_compress.checkpoints.verification import verify
from owl_compress.errors import RequestError

Refusal = Callable[..., str]
REMEDY = "start from the model that it was made from, or from a dequantised copy of it"
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model class of transformers is asked to load anything."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", load)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", load)


def describe(folder: Path, **content: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("description", "shown"),
    [
        ({"quant_method": "awq", "bits": 4}, "AWQ"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8"),
        ({"quant_method": "auto-round", "bits": 4}, "AutoRound"),
        ({"quant_method": "torchao", "quant_type": {}}, "torchao"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_algo": "NVFP4"}, "NVIDIA ModelOpt"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"bits": 3}, "by a method that its config.json does not name"),
    ],
)
def test_every_method_that_config_json_names_is_refused_by_name(
    checkpoint: Path, refusal: Refusal, description: Mapping[str, Any], shown: str
) -> None:
    describe(checkpoint, quantization_config=description)
    message = refusal(checkpoint)
    assert f"is quantized already ({shown})" in message
    assert message.endswith(REMEDY)


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_description_of_the_language_part_alone_counts(
    checkpoint: Path, refusal: Refusal, key: str
) -> None:
    describe(checkpoint, text_config={key: {"quant_method": "awq"}})
    assert "(AWQ)" in refusal(checkpoint)


def test_a_description_that_says_nothing_is_none(checkpoint: Path) -> None:
    describe(checkpoint, quantization_config=None)
    with pytest.raises(AssertionError, match="was loaded"):
        load_whole(checkpoint)


def load_whole(folder: Path) -> None:
    """Go as far as loading; a refusal is a failure here."""
    try:
        load_model(str(folder))
    except RequestError as error:
        raise AssertionError(str(error)) from error


@pytest.mark.parametrize("part", ["weight_scale", "weight_scale_inv"])
def test_scales_that_config_json_does_not_mention_are_found_in_the_files(
    checkpoint: Path, refusal: Refusal, part: str
) -> None:
    def quantize(tensors: dict[str, Tensor]) -> None:
        tensors[f"{UP}.weight"] = tensors[f"{UP}.weight"].to(torch.float8_e4m3fn)
        tensors[f"{UP}.{part}"] = torch.ones(1)

    rewrite(checkpoint, quantize)
    message = refusal(checkpoint)
    assert f"(config.json says nothing of it; it holds {UP}.{part})" in message
    (checkpoint / "hf_quant_config.json").write_text("{}")
    assert f"(NVIDIA ModelOpt, by its hf_quant_config.json; it holds {UP}.{part})" in refusal(checkpoint)
    with pytest.raises(RequestError, match="quantized already"):
        verify(checkpoint, "2:4")


@pytest.mark.parametrize(
    ("file", "weights", "tool"),
    [
        ("quantize_config.json", "gptq_model-4bit-128g.safetensors", "AutoGPTQ"),
        ("quant_config.json", "awq_model_w4_g128.pt", "AutoAWQ"),
    ],
)
def test_folders_of_old_tools_are_told_by_the_file_that_describes_them(
    checkpoint: Path, refusal: Refusal, file: str, weights: str, tool: str
) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / weights)
    (checkpoint / file).write_text("{}")
    assert f"({tool}, by its {file})" in refusal(checkpoint)


def test_such_a_file_beside_ordinary_weights_harms_nobody(checkpoint: Path) -> None:
    (checkpoint / "quantize_config.json").write_text("{}")
    with pytest.raises(AssertionError, match="the model was loaded"):
        load_whole(checkpoint)


@pytest.mark.parametrize(
    "name",
    [f"{UP}.qweight", f"{UP}.weight.absmax", f"{UP}.weight.quant_state.bitsandbytes__nf4", f"{UP}.SCB"],
)
def test_codes_are_told_by_their_names(name: str) -> None:
    assert quantized_tensor(["lm_head.weight", name]) == name
    with pytest.raises(RequestError, match=r"which config\.json says nothing of"):
        check_names("owner/model", ["lm_head.weight", name])


def test_ordinary_names_are_none_of_them() -> None:
    names = ["lm_head.weight", f"{UP}.bias", "model.norm.scale", "model.layers.0.scales.weight"]
    assert quantized_tensor(names) is None
    check_names("owner/model", names)
