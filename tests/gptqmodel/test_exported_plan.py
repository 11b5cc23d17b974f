"""A plan of ours, carried out by GPTQModel alone, by what `docs/exchange.md` says to type."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.cli import _exit_code

pytestmark = [
    pytest.mark.gptqmodel,
    # What the packages below warn about is none of ours here.
    pytest.mark.filterwarnings("ignore"),
]

PAGE = (Path(__file__).parents[2] / "docs" / "exchange.md").read_text(encoding="utf-8")
BITS = ("--allocator", "linear-depth", "--bits", "3", "--bit-choices", "2,3,4", "--lam", "1")


def test_gptqmodel_carries_out_what_was_exported(
    measured: Callable[..., None], allocated: Callable[..., dict[str, float]], tokenizer: Any
) -> None:
    measured()
    budgets = allocated(*BITS)
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
