"""Folders with an adapter: beside a whole model, or alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Refusal = Callable[..., str]


def put_adapter(folder: Path, text: str | None = None) -> None:
    content = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (folder / "adapter_config.json").write_text(text or json.dumps(content))


def test_an_adapter_beside_the_weights_is_refused_with_the_remedy(checkpoint: Path, refusal: Refusal) -> None:
    put_adapter(checkpoint)
    message = refusal(checkpoint)
    assert "has an adapter beside its weights (adapter_config.json)" in message
    assert "merge it into the weights first" in message
    assert "or move adapter_config.json away" in message


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors"])
def test_an_adapter_alone_names_its_base(checkpoint: Path, refusal: Refusal, gone: str) -> None:
    (checkpoint / gone).unlink()
    put_adapter(checkpoint)
    message = refusal(checkpoint)
    assert "holds an adapter alone (adapter_config.json) and no model; its base is 'owner/base'" in message
    assert "merge_and_unload()" in message


@pytest.mark.parametrize("text", ["{", "[]", '{"base_model_name_or_path": 3}', "[" * 3000])
def test_an_adapter_that_cannot_be_read_is_one_all_the_same(
    tmp_path: Path, refusal: Refusal, text: str
) -> None:
    put_adapter(tmp_path, text)
    assert "and no model: merge it" in refusal(tmp_path)
