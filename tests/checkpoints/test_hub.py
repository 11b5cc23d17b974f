"""Transformers and the hub are kept quiet, and what they refuse is told in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants as hub_constants
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging as transformers_logging

from owl_compress.checkpoints.hub import quiet_transformers
from owl_compress.checkpoints.loading import load_model


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("source", ["nobody/nothing", "not a/!valid id", "nothing"])
def test_an_id_the_hub_does_not_give_names_local_remedies(
    refusal: Callable[..., str], source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    message = refusal(source)
    assert source in message
    assert "local checkpoint folder or .gguf file" in message


@pytest.mark.parametrize("failing", [False, True])
def test_transformers_voice_is_given_back(
    refusal: Callable[..., str], checkpoint: Path, *, failing: bool
) -> None:
    def voice() -> tuple[object, ...]:
        return (
            transformers_logging.get_verbosity(),
            transformers_logging.is_progress_bar_enabled(),
            are_progress_bars_disabled(),
            os.environ.get("DISABLE_SAFETENSORS_CONVERSION"),
        )

    before = voice()
    if failing:
        edit_config(checkpoint, hidden_size="x")
        refusal(checkpoint)
    else:
        load_model(str(checkpoint))
    assert voice() == before
    with quiet_transformers():
        assert not transformers_logging.is_progress_bar_enabled()


def test_loading_says_nothing(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(str(checkpoint))
    assert capfd.readouterr() == ("", "")
