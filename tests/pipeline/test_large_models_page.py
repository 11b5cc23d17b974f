"""The memory table on the page of large models is what the tool's own estimate says."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from owl_compress.backends.sparsegpt import SparseGPT
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.provenance import CalibrationRecord
from owl_compress.models.structure import find_structure
from owl_compress.pages.words import size_in_words
from owl_compress.pipeline.needs import Course, Waiting, needs_of

PAGE = Path(__file__).parents[2] / "docs" / "large.md"
SHAPES = {"7B": (4096, 11008, 32, 32), "13B": (5120, 13824, 40, 40), "70B": (8192, 28672, 80, 8)}
GPU: tuple[tuple[Waiting, str], ...] = (
    ("device", "device_bytes"),
    ("host", "device_bytes"),
    ("host", "host_bytes"),
    ("disk", "device_bytes"),
    ("disk", "host_bytes"),
    ("disk", "disk_bytes"),
)
CPU: tuple[tuple[Waiting, str], ...] = (("host", "host_bytes"), ("disk", "host_bytes"))


@pytest.mark.parametrize("name", SHAPES)
def test_the_table_is_what_the_estimate_says(name: str) -> None:
    hidden, inner, n_blocks, n_kv_heads = SHAPES[name]
    config = LlamaConfig(
        vocab_size=32000, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=n_blocks,
        num_attention_heads=hidden // 128, num_key_value_heads=n_kv_heads,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    record = CalibrationRecord(
        source="text",
        token_ids_sha256="0",
        sequences=128,
        seq_len=2048,
        sampling="random",
        seed=0,
        bos="never",
    )
    windows = TokenWindows(torch.zeros(128, 2048, dtype=torch.long), record)
    n_bytes = 2 * sum(parameter.numel() for parameter in model.parameters())
    structure = find_structure(model)

    def peak(waiting: Waiting, what: str, *, has_device: bool) -> str:
        course = Course(
            SparseGPT(), waiting, has_device, windows, windows, windows,
            keeps_blocks=waiting == "disk", checkpoint_bytes=n_bytes,
        )  # fmt: skip
        return size_in_words(max(getattr(one, what) for one in needs_of(model, structure, course)))

    rows = [
        [name, size_in_words(n_bytes), *(peak(*cell, has_device=has_device) for cell in cells)]
        for cells, has_device in ((GPU, True), (CPU, False))
    ]
    for row in rows:
        assert f"| {' | '.join(row)} |" in re.split("\n", PAGE.read_text(encoding="utf-8")), row
