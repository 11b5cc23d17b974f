"""Packages outside the default suite load what we write: peft, llm-compressor, mlx-lm, ONNX Runtime."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [
    pytest.mark.interop,
    # What the packages below warn about is none of ours here.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("copied_modules"),
]

Written = Callable[[str], Path]
LogitsOf = Callable[[Any], Tensor]
IDS = torch.arange(3, 60)[None]
PAGE = Path(__file__).parents[2] / "docs" / "elsewhere.md"


def loaded(folder: Path) -> Any:
    """The model of a folder, as transformers alone has it; packed weights are unpacked by a first pass."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        model(IDS)
    return model


@pytest.mark.proves("peft", "peft", "transformers")
@pytest.mark.parametrize("output", ["dense-sparse", "N:M", "packed", "narrow", "packed narrow"])
def test_peft(written: Written, logits_of: LogitsOf, output: str, tmp_path: Path) -> None:
    """LoRA on all linears, trained, saved, loaded back: the same logits; base weights untouched"""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    options = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(loaded(written(output)), options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 3 * 7
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(2):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[1] < losses[0]
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(loaded(written(output)), tmp_path / "adapter").eval()
    assert torch.equal(logits_of(again), logits_of(model.eval()))
    base, before = again.get_base_model(), loaded(written(output))
    for name, module in before.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            assert torch.equal(base.get_submodule(name).base_layer.weight, module.weight)


@pytest.mark.proves("llm-compressor", "llmcompressor", "compressed-tensors")
@pytest.mark.parametrize("output", ["dense-sparse", "N:M", "uniform width"])
def test_llm_compressor(written: Written, output: str, tmp_path: Path) -> None:
    """`oneshot` reads the folder and rounds it to 4 bits: zeros are zeros, and its output loads"""
    llmcompressor = pytest.importorskip("llmcompressor")
    from llmcompressor.modifiers.quantization import QuantizationModifier

    weights = {"num_bits": 4, "strategy": "channel", "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    recipe = QuantizationModifier(config_groups=groups, ignore=["lm_head"])
    folders = {"model": str(written(output)), "output_dir": str(tmp_path / "theirs")}
    model = llmcompressor.oneshot(recipe=recipe, **folders)
    before = loaded(written(output))
    for name, module in before.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            assert model.get_submodule(name).quantization_scheme.weights.num_bits == 4
    theirs = loaded(tmp_path / "theirs")
    for name, module in before.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            assert not theirs.get_submodule(name).weight[module.weight == 0].any()
    assert AutoTokenizer.from_pretrained(tmp_path / "theirs")("owl")["input_ids"]


@pytest.mark.proves("mlx-lm", "mlx-lm", "mlx")
@pytest.mark.parametrize("output", ["dense-sparse", "N:M", "dequantised", "uniform width"])
def test_mlx_lm(written: Written, logits_of: LogitsOf, output: str) -> None:
    """`mlx_lm.load` on a CPU: the logits that transformers has, to 1e-5"""
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as mx

    model, tokenizer = mlx_lm.load(str(written(output)))
    asked = logits_of(loaded(written(output)))
    torch.testing.assert_close(torch.tensor(model(mx.array(IDS.numpy())).tolist()), asked, atol=1e-5, rtol=0)
    assert tokenizer.encode("owl")


@pytest.mark.proves("ONNX Runtime", "onnxruntime", "onnx", "torch")
@pytest.mark.parametrize("output", ["dense-sparse", "narrow"])
def test_onnx_runtime(
    written: Written, logits_of: LogitsOf, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """the code below, on sequences of two lengths: the same logits, to 1e-5"""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    Path("OUT").symlink_to(written(output))
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    exec(compile(code, PAGE.name, "exec", dont_inherit=True), {"__name__": PAGE.stem})
    session = onnxruntime.InferenceSession("model.onnx")
    asked = logits_of(loaded(written(output)))
    for length in (57, 20):
        (found,) = session.run(None, {"input_ids": IDS[:, :length].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), asked[:, :length], atol=1e-5, rtol=0)
