"""`llama-quantize` carries out an exported plan, on what llama.cpp's own script converts."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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


def test_every_linear_gets_its_type(
    measured: Callable[..., None], allocated: Callable[..., dict[str, float]], llama_cpp: Path, here: Path
) -> None:
    import gguf

    tokenizer = load("builtin").tokenizer  # one that llama.cpp's script knows
    measured(tokenizer, hidden_size=256, intermediate_size=512, num_hidden_layers=5, num_key_value_heads=4)
    budgets = allocated(*BITS)
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
