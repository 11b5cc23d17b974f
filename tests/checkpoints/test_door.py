"""Code of a repository: run where consent was given, and otherwise neither run nor asked about."""

import ast
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.verification import verify
from owl_compress.errors import RequestError

ROOT = Path(__file__).parents[2]
DOOR = ROOT / "owl_compress" / "checkpoints" / "door.py"
MAKERS = {"from_pretrained", "from_config"}

CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig

Path({marker!r}).touch()


class MineConfig(LlamaConfig):
    model_type = "mine"
"""
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_mine import MineConfig


class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that the code of `with_code` makes when it is run."""
    return tmp_path / "was_run"


@pytest.fixture
def with_code(checkpoint: Path, marker: Path, copied_modules: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a class of its own, whose code lies beside the weights; somebody answers "y" to all."""
    (checkpoint / "configuration_mine.py").write_text(CONFIGURATION.format(marker=str(marker)))
    (checkpoint / "modeling_mine.py").write_text(MODEL)
    edit_config(checkpoint, model_type="mine", architectures=["MineForCausalLM"], auto_map=AUTO_MAP)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    return checkpoint


AUTO_MAP = {
    "AutoConfig": "configuration_mine.MineConfig",
    "AutoModelForCausalLM": "modeling_mine.MineForCausalLM",
}


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    "look", [lambda folder: load_model(str(folder)), lambda folder: verify(folder, "1:1")]
)
def test_code_is_neither_run_nor_asked_about(
    with_code: Path, marker: Path, capfd: pytest.CaptureFixture[str], look: Callable[[Path], Any]
) -> None:
    with pytest.raises(RequestError, match="read that code, then pass --trust-remote-code if you trust it"):
        look(with_code)
    assert not marker.exists()
    assert capfd.readouterr() == ("", "")


def test_a_stock_configuration_with_a_class_of_its_own_is_not_asked_about(
    with_code: Path, marker: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """transformers knows the configuration and no causal model for it: the model class alone is code."""
    edit_config(
        with_code, model_type="vit", auto_map={"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    )
    with pytest.raises(RequestError, match="--trust-remote-code"):
        verify(with_code, "1:1")
    assert not marker.exists()
    assert capfd.readouterr() == ("", "")


def test_code_is_run_with_consent(with_code: Path, marker: Path) -> None:
    assert verify(with_code, "1:1", trust_remote_code=True).ok
    assert marker.exists()
    assert type(load_model(str(with_code), trust_remote_code=True).model).__name__ == "MineForCausalLM"


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_configuration_that_has_code_fetched_is_refused(checkpoint: Path, key: str) -> None:
    edit_config(checkpoint, **{key: "someone/kernel"})
    with pytest.raises(RequestError, match="'someone/kernel' fetched and run"):
        load_model(str(checkpoint))


def calls_past_the_door(path: Path) -> Iterator[str]:
    """Uses of what makes objects of transformers, other than those of our own `CheckpointSource`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in MAKERS:
            owner = ast.unparse(node.value)
            if owner != "source":
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {owner}.{node.attr}"


def test_everything_of_transformers_comes_through_the_door() -> None:
    folders = (ROOT / "owl_compress", ROOT / "allocators", ROOT / "backends")
    files = [path for folder in folders for path in folder.rglob("*.py") if path != DOOR]
    assert [call for path in files for call in calls_past_the_door(path)] == []


def test_the_door_is_told_about_consent_each_time() -> None:
    calls = [
        node for node in ast.walk(ast.parse(DOOR.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    made = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in MAKERS]
    made = [call for call in made if "PeftModel" not in ast.unparse(call.func)]  # of adapters, without code
    assert len(made) == 2
    assert all("trust_remote_code" in {keyword.arg for keyword in call.keywords} for call in made)
