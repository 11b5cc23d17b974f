"""A plan of ours, carried out by GPTQModel alone, by what `docs/exchange.md` says to type."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from owl_compress.cli import _exit_code

pytestmark = [
    pytest.mark.gptqmodel,
    # What the packages below warn about is none of ours here.
    pytest.mark.filterwarnings("ignore"),
]

PAGE = (Path(__file__).parents[2] / "docs" / "exchange.md").read_text(encoding="utf-8")
BITS = ("--allocator", "linear-depth", "--bits", "3", "--bit-choices", "2,3,4", "--lam", "1")


@pytest.fixture
def budgets(here: Path, tokenizer: Any) -> dict[str, float]:
    """Bits of each linear by `plan.json` in the working folder, where `MODEL` fits GPTQModel's kernels."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(here / "MODEL")
    tokenizer.save_pretrained(here / "MODEL")
    text = ("--calib", "text.txt", "--samples", "4", "--seq-len", "32", "--quiet")
    assert _exit_code(["measure", "MODEL", *text, "-o", "report.json"]) == 0
    assert _exit_code(["allocate", "report.json", *BITS, "-o", "plan.json", "--quiet"]) == 0
    plan = json.loads((here / "plan.json").read_text())
    return {row["name"]: row["value"] for row in plan["budgets"]}


def test_gptqmodel_carries_out_what_was_exported(budgets: dict[str, float], tokenizer: Any) -> None:
    section = PAGE.partition("## GPTQModel\n")[2].partition("\n## ")[0]
    (command,) = re.findall(r"^owl-compress (.*)$", section, re.M)
    assert _exit_code([*shlex.split(command), "--quiet"]) == 0
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    ids = tokenizer(Path("text.txt").read_text())["input_ids"]
    examples = [{"input_ids": ids[at : at + 64], "attention_mask": [1] * 64} for at in range(0, 1024, 64)]
    names["model"].quantize(examples, batch_size=1)
    modules = dict(names["model"].model.named_modules())
    assert set(budgets.values()) == {2, 3, 4}
    assert {name: modules[name].bits for name in budgets} == budgets
