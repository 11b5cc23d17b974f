"""`llama-quantize` carries out an exported plan, on what llama.cpp's own script converts."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from owl_compress.cli import _exit_code
from owl_compress.pipeline.stages import load

pytestmark = [pytest.mark.llamacpp, pytest.mark.filterwarnings("ignore")]

PAGE = (Path(__file__).parents[2] / "docs" / "exchange.md").read_text(encoding="utf-8")
BITS = ("--bits", "4", "--bit-choices", "2,3,4,5,6,8", "--allocator", "linear-depth", "--lam", "2")
TYPES = {2: "Q2_K", 3: "Q3_K", 4: "Q4_K", 5: "Q5_K", 6: "Q6_K", 8: "Q8_0"}


@pytest.fixture
def llama_cpp() -> Path:
    """The sources, in which `llama-quantize` was built."""
    return Path(os.environ["LLAMA_CPP"])


@pytest.fixture
def budgets(here: Path) -> dict[str, float]:
    """Bits of each linear by `plan.json`; `MODEL` beside it has a tokenizer that llama.cpp's script knows."""
    tokenizer = load("builtin").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
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


def test_every_linear_gets_its_type(budgets: dict[str, float], llama_cpp: Path, here: Path) -> None:
    import gguf

    section = PAGE.partition("## llama.cpp\n")[2].partition("\n## ")[0]
    (typed,) = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    ours, theirs = map(shlex.split, typed.splitlines())
    assert _exit_code([*ours[1:], "--quiet"]) == 0
    convert = (str(llama_cpp / "convert_hf_to_gguf.py"), "MODEL", "--outtype", "f16")
    done(sys.executable, *convert, "--outfile", "model-f16.gguf", PYTHONPATH=str(llama_cpp / "gguf-py"))
    built = llama_cpp / "build" / "bin"
    done(str(built / theirs[0]), *theirs[1:], LD_LIBRARY_PATH=str(built))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 5)
    found = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader("model.gguf").tensors}
    assert len(set(budgets.values())) > 3
    assert {name: found[f"{names.get_name(name)}.weight"] for name in budgets} == {
        name: TYPES[round(bits)] for name, bits in budgets.items()
    }


def done(*command: str, **environment: str) -> None:
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
