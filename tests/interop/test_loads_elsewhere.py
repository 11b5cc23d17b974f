"""What the default suite can ask of others: transformers, compressed-tensors, and the DeciLM of servers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.usefixtures("copied_modules")

STOCK = ("dense-sparse", "N:M", "dequantised", "packed", "uniform width")
NARROW = ("narrow", "packed narrow")

Written = Callable[[str], Path]


@pytest.mark.proves("transformers", "transformers")
@pytest.mark.parametrize("output", [*STOCK, *NARROW])
def test_transformers(
    written: Written, expected: Callable[[str], Tensor], logits_of: Callable[[Any], Tensor], output: str
) -> None:
    """`from_pretrained` without network: the logits that owl-compress has"""
    options: dict[str, Any] = {"trust_remote_code": True} if output in NARROW else {}
    model = AutoModelForCausalLM.from_pretrained(written(output), local_files_only=True, **options)
    assert AutoTokenizer.from_pretrained(written(output), local_files_only=True)("owl")["input_ids"]
    assert torch.equal(logits_of(model.eval()), expected(output))
