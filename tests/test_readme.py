"""README.md says what is true: its Python runs, its commands parse, and all that is registered is in it."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from typer.main import get_command

from owl_compress.allocators import ALLOCATORS
from owl_compress.backends import BACKENDS
from owl_compress.cli.application import application
from owl_compress.cli.options import typed_options
from owl_compress.documents.recipe import Recipe, is_recipe
from owl_compress.importance.metrics import METRICS
from owl_compress.pipeline.request import allocator_of, backend_of, check_unit, target_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands() -> list[list[str]]:
    """Every owl-compress command line, as words."""
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("owl-compress")]


def test_commands_are_found() -> None:
    assert {words[1] for words in commands()} == {"measure", "allocate", "compress", "eval", "verify", "run"}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_can_be_meant(words: list[str]) -> None:
    group: Any = get_command(application(words[1:]))
    context = group.commands[words[1]].make_context(words[1], words[2:])
    if words[1] in {"run", "allocate"} and not is_recipe(words[2]):
        defaults = {"model": "MODEL", "allocator": "owl", "backend": "wanda"}
        recipe = Recipe.from_options(defaults | typed_options(context))
        target = target_of(recipe)
        allocator_of(recipe).settled(target)
        backend_of(recipe)
        if words[1] == "run":
            check_unit(recipe.backend, target.unit)


def test_make_targets_exist() -> None:
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.M)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_python_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_llama: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """As it stands, but for a smaller model and shorter windows."""
    tiny_llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks("python"))
    for theirs, ours in (
        ('load("builtin")', 'load("model")'), ("seq_len=512", "seq_len=32"), ("windows=16", "windows=2"),
        ('"model": "builtin"', '"model": "model"'), ('"seq_len": 512', '"seq_len": 32'),
        ('"max_windows": 16', '"max_windows": 2'),
    ):  # fmt: skip
        assert theirs in code
        code = code.replace(theirs, ours)
    namespace: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    first, size, tried, whole = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d+\.\d -> \d+\.\d at density 0\.\d{4}", first)
    assert int(size) > 0
    assert re.fullmatch(r"\d+\.\d+ 0\.\d+", tried)
    assert whole == "True"
    assert len(namespace["sparsity"]) == 3 * 7
    assert (tmp_path / "OUT" / "model.safetensors").is_file()


def test_recipes_are_recipes() -> None:
    recipes = [Recipe.from_options(yaml.safe_load(block)) for block in blocks("yaml")]
    assert len(recipes) == 1
    assert allocator_of(recipes[0]).name == "owl"


@pytest.mark.parametrize("registry", [ALLOCATORS, BACKENDS])
def test_everything_registered_is_described(registry: Any) -> None:
    rows = re.findall(r"^(?:- |\| )`([\w-]+)`", README, re.M)
    assert set(registry.builtin) <= set(rows)


def test_every_metric_and_option_is_real() -> None:
    assert all(f"`{name}" in README for name in METRICS.builtin)
    names = get_command(application([])).commands  # type: ignore[attr-defined]
    groups: dict[str, Any] = {name: get_command(application([name, "--help"])) for name in names}
    known = {
        option
        for name, group in groups.items()
        for parameter in group.commands[name].params
        for option in parameter.opts
    }
    outside = {"--no-deps", "--perturb", "--help"}  # pip's, a benchmark's, and what every command has
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - outside <= known


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link.startswith("https://") or link.endswith(".png") or (ROOT / link).exists(), link
