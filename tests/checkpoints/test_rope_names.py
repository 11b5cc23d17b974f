"""The rotary embedding stands in config.json by its older names too, and means the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig

from owl_compress.checkpoints.rope_names import add_older_names, older_names

LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("rope", "names"),
    [
        ({}, {}),
        ({"rope_type": "default"}, {}),
        ({"rope_type": "default", "rope_theta": 500.0}, {"rope_theta": 500.0}),
        (
            {"rope_theta": 500.0, "partial_rotary_factor": 0.5},
            {"rope_theta": 500.0, "partial_rotary_factor": 0.5},
        ),
        (LINEAR, {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ({"full_attention": LINEAR, "sliding_attention": {"rope_theta": 1.0}}, {}),
    ],
)
def test_older_names_of(rope: dict[str, Any], names: dict[str, Any]) -> None:
    assert older_names(rope) == names


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 500.0}, LINEAR])
def test_transformers_reads_the_same_configuration_and_writes_it_as_before(
    rope: dict[str, Any], tmp_path: Path
) -> None:
    LlamaConfig(rope_parameters=rope, head_dim=8).save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    add_older_names(tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text()) == {**json.loads(text), **older_names(rope)}
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.rope_parameters == before.rope_parameters
    again.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == text


def test_a_model_without_one_keeps_its_file_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type":   "gpt2"}')
    add_older_names(tmp_path / "config.json")
    assert (tmp_path / "config.json").read_text() == '{"model_type":   "gpt2"}'
