"""What the default suite can ask of others: transformers, torch.export, and compressed-tensors by itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from owl_compress.pipeline.stages import load

pytestmark = pytest.mark.usefixtures("copied_modules")

STOCK = ("dense-sparse", "N:M", "dequantised", "packed", "uniform width")
NARROW = ("narrow", "packed narrow")

Written = Callable[[str], Path]


@pytest.mark.proves("transformers", "transformers")
@pytest.mark.parametrize("output", [*STOCK, *NARROW])
def test_transformers(
    written: Written, expected: Callable[[str], Tensor], logits_of: Callable[[Any], Tensor], output: str
) -> None:
    """`from_pretrained` with `local_files_only=True`: the same logits to the last bit"""
    options: dict[str, Any] = {"trust_remote_code": True} if output in NARROW else {}
    model = AutoModelForCausalLM.from_pretrained(written(output), local_files_only=True, **options)
    assert AutoTokenizer.from_pretrained(written(output), local_files_only=True)("owl")["input_ids"]
    assert torch.equal(logits_of(model.eval()), expected(output))


@pytest.mark.proves("compressed-tensors", "compressed-tensors")
@pytest.mark.parametrize("output", ["packed", "packed narrow"])
def test_compressed_tensors(written: Written, output: str) -> None:
    """its own decompressor on the tensors of the files: the same weights to the last bit"""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    described = json.loads((written(output) / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(described)
    tensors = load_file(written(output) / "model.safetensors")
    model = load(str(written(output))).model
    names = []
    for group in config.config_groups.values():
        compressor = BaseCompressor.get_value_from_registry(group.format or config.format)
        for name in group.targets:
            stored = {
                key.rpartition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{name}.")
            }
            weight = compressor.decompress(stored, group)["weight"]
            assert torch.equal(weight, model.get_submodule(name).weight), name
            names.append(name)
    assert len(names) == len(set(names)) == 3 * 7


class OnlyLogits(torch.nn.Module):
    """A model as a function of token ids."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


@pytest.mark.slow
@pytest.mark.proves("torch.export", "torch")
@pytest.mark.parametrize("output", ["dense-sparse", "narrow"])
def test_torch_export(written: Written, output: str) -> None:
    """exported with sequences of any length: the same logits at two lengths"""
    model = OnlyLogits(AutoModelForCausalLM.from_pretrained(written(output), trust_remote_code=True).eval())
    ids = torch.arange(3, 60)[None]
    lengths = {"input_ids": {1: torch.export.Dim("length", min=2, max=127)}}
    program = torch.export.export(model, (ids,), dynamic_shapes=lengths).module()
    for length in (57, 20):
        torch.testing.assert_close(program(ids[:, :length]), model(ids[:, :length]))
