"""What a configuration says of an author's code holds only where that code lies beside it."""

import json
from pathlib import Path
from typing import Any

import pytest

from owl_compress.checkpoints.code_files import drop_missing_code
from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.saving import save_checkpoint

MAP = {"AutoConfig": "configuration_mine.Mine", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}


def edit(path: Path, **content: Any) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | content))


def test_code_that_was_not_run_is_not_named_in_the_output(checkpoint: Path, tmp_path: Path) -> None:
    edit(checkpoint / "config.json", auto_map=MAP)
    (checkpoint / "configuration_mine.py").write_text("raise SystemExit")
    (checkpoint / "modeling_mine.py").write_text("raise SystemExit")
    loaded = load_model(str(checkpoint))
    (tmp_path / "OUT").mkdir()
    (note,) = save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "OUT")
    assert note.endswith("not named in the output: configuration_mine.Mine, modeling_mine.MineForCausalLM")
    assert "auto_map" not in json.loads((tmp_path / "OUT" / "config.json").read_text())
    load_model(str(tmp_path / "OUT"))


def test_files_that_are_there_and_other_repositories_stay_named(tmp_path: Path) -> None:
    (tmp_path / "modeling_mine.py").touch()
    elsewhere = {"AutoModel": "owner/model--modeling_other.Other"}
    edit(tmp_path / "config.json", auto_map=MAP | elsewhere)
    assert len(drop_missing_code(tmp_path)) == 1
    kept = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert kept == {"AutoModelForCausalLM": MAP["AutoModelForCausalLM"]} | elsewhere


@pytest.mark.parametrize("tokenizer", [["tokens.Slow", None], [None, "tokens.Fast"], "tokens.Fast"])
def test_tokenizers_name_code_too(tmp_path: Path, tokenizer: Any) -> None:
    edit(tmp_path / "tokenizer_config.json", auto_map={"AutoTokenizer": tokenizer})
    assert len(drop_missing_code(tmp_path)) == 1
    edit(tmp_path / "tokenizer_config.json", auto_map={"AutoTokenizer": tokenizer})
    (tmp_path / "tokens.py").touch()
    assert drop_missing_code(tmp_path) == ()


def test_configurations_without_code_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{ "auto_map": null}')
    assert drop_missing_code(tmp_path) == ()
    assert (tmp_path / "config.json").read_text() == '{ "auto_map": null}'
