"""Methods of another package work from `pip install` alone: on the command line, in recipes and results."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
TEXT = ("--calib", "text.txt", "--samples", "2", "--seq-len", "32", "--quiet")
RUN = ("run", "model", *TEXT, "--sparsity", "0.5")
THEIRS = (*RUN, "--allocator", "last-heaviest", "--backend", "soft-threshold")
OWL = ("--allocator", "owl", "--metric", "weight_max", "--sparsity", "0.5", "--quiet")

COMMANDS: dict[str, tuple[str, ...]] = {
    "run": (*THEIRS, "--slope", "0.2", "--shrink", "0.25", "--ties", "last", "-o", "OUT"),
    "again": ("run", "OUT/recipe.yaml", "-o", "AGAIN", "--quiet"),
    "help": ("run", "--help"),
    "measure": ("measure", "model", *TEXT, "--metric", "weight_max", "-o", "report.json"),
    "allocate": ("allocate", "report.json", *OWL, "-o", "plan.json"),
    "too steep": (*THEIRS, "--slope", "0.6", "-o", "NONE"),
    "no number": (*THEIRS, "--slope", "steep", "-o", "NONE"),
    "all shrunk": (*THEIRS, "--shrink", "1", "-o", "NONE"),
    "no such tie": (*THEIRS, "--ties", "frist", "-o", "NONE"),
    "another's": (*THEIRS, "--group-size", "64", "-o", "NONE"),
    "nobody's": (*THEIRS, "--shrinc", "0.1", "-o", "NONE"),
    "broken": (*RUN, "--backend", "broken", "-o", "NONE"),
    "function": (*RUN, "--backend", "function", "-o", "NONE"),
    "quits": (*RUN, "--backend", "quits", "-o", "NONE"),
    "nameless": (*RUN, "--backend", "nameless", "-o", "NONE"),
    "no dataclass": (*RUN, "--allocator", "no-dataclass", "-o", "NONE"),
    "unharmed": (*RUN, "--backend", "wanda", "--scope", "row", "--dry-run"),
    "odd": (*RUN, "--allocator", "odd", "--steps", "8", "--dry-run"),
}
"""Command lines that are run one after the other, in one process that sees the package."""

BROKEN = """
[owl_compress.backends]
broken = no_such_module:Backend
function = json:dumps
quits = odd_methods_that_quit:Backend
nameless = odd_methods:Nameless
[owl_compress.allocators]
no-dataclass = json:JSONDecoder
odd = odd_methods:Odd
"""
"""What packages register that nobody can use, and an allocator whose options are called like others."""

ODD = """
from dataclasses import dataclass, field
from typing import ClassVar, Literal

@dataclass(frozen=True)
class Nameless:
    strength: int = 1

@dataclass(frozen=True)
class Odd:
    name: ClassVar[str] = "odd"
    granularity: ClassVar[str] = "block"
    reads_scores: ClassVar[bool] = False
    format: int = 1
    dry_run: int = 1
    steps: Literal[4, 8] = 4
    extra: list = field(default_factory=list)

    def settled(self, target):
        return self

    def curve(self, groups, target):
        return lambda shift: __import__("numpy").full(len(groups), shift)

    def importance(self, groups):
        return None
"""

ALL_COMMANDS = """
import contextlib, io, json, sys
from owl_compress.cli import _exit_code

outcomes = {}
for name, words in json.load(sys.stdin).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _exit_code(words)
    outcomes[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package was installed into with pip, and a broken one beside it by hand."""
    site, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source")
    for file in (HERE / "package").glob("*.*"):
        (source / file.name).write_bytes(file.read_bytes())
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation")
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True)
    broken = site / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text(BROKEN)
    (site / "odd_methods.py").write_text(ODD)
    (site / "odd_methods_that_quit.py").write_text("raise SystemExit(3)\n")
    return site


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[[str], Any], tokenizer: Any) -> Path:
    """A folder with a tiny model and a text."""
    folder = tmp_path_factory.mktemp("work")
    make_model("llama").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "text.txt").write_text(" ".join(f"owl{number:04d}" for number in range(500)))
    return folder


@pytest.fixture(scope="module")
def python(site: Path, there: Path) -> Callable[..., str]:
    """A function that runs Python code where the package is installed, and returns what it prints."""

    def run(code: str, stdin: str = "") -> str:
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code]
        ran = subprocess.run(
            command, cwd=there, env=environment, input=stdin, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


@pytest.fixture(scope="module")
def outcomes(python: Callable[..., str]) -> Mapping[str, Any]:
    """Exit code and streams of all command lines, by their names."""
    found: dict[str, Any] = json.loads(python(ALL_COMMANDS, json.dumps(COMMANDS)))
    return found


def test_a_run_with_their_options(outcomes: Mapping[str, Any], there: Path) -> None:
    assert outcomes["run"]["code"] == 0, outcomes["run"]["err"]
    plan = json.loads((there / "OUT/plan.json").read_text())
    result = json.loads((there / "OUT/result.json").read_text())
    recipe = yaml.safe_load((there / "OUT/recipe.yaml").read_text())
    assert (plan["allocator"]["name"], plan["allocator"]["parameters"]["slope"]) == ("last-heaviest", 0.2)
    assert plan["budgets"][-1]["value"] - plan["budgets"][0]["value"] == pytest.approx(0.2)
    assert result["backend"] == {"name": "soft-threshold", "parameters": {"shrink": 0.25, "ties": "last"}}
    assert result["totals"]["achieved"] <= 0.5
    assert (recipe["slope"], recipe["shrink"], recipe["ties"]) == (0.2, 0.25, "last")
    assert "shrink = 0.25" in (there / "OUT/README.md").read_text()


def test_its_recipe_makes_the_same_checkpoint(outcomes: Mapping[str, Any], there: Path) -> None:
    assert outcomes["again"]["code"] == 0, outcomes["again"]["err"]
    for name in ("model.safetensors", "plan.json", "recipe.yaml"):
        assert (there / "OUT" / name).read_bytes() == (there / "AGAIN" / name).read_bytes()


def test_help_names_them_with_their_options(outcomes: Mapping[str, Any]) -> None:
    text = " ".join(outcomes["help"]["out"].replace("│", " ").split())
    for words in ("last-heaviest", "soft-threshold", "--slope", "--shrink", "--ties", "One of first, last."):
        assert words in text
    assert "How much more the last block keeps than the first." in text
    assert outcomes["help"]["err"] == ""


def test_what_is_broken_harms_nobody_else(outcomes: Mapping[str, Any]) -> None:
    for name in ("unharmed", "odd"):
        assert outcomes[name]["code"] == 0, outcomes[name]["err"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too steep", "allocator 'last-heaviest': slope 0.6 must be at most 0.5"),
        ("no number", "allocator 'last-heaviest': slope: has to be a number"),
        ("all shrunk", "backend 'soft-threshold': shrink 1 must be below 1"),
        ("no such tie", "backend 'soft-threshold': unknown ties 'frist': did you mean 'first'?"),
        ("another's", "backend 'soft-threshold' takes no group-size; it takes: shrink, ties"),
        ("nobody's", "unknown option --shrinc: did you mean '--shrink'?"),
        ("broken", "backend 'broken' cannot be imported (No module named 'no_such_module')"),
        ("function", "backend 'function' cannot be used"),
        ("quits", "backend 'quits' cannot be imported"),
        ("nameless", "backend 'nameless' cannot be used (its class has to state name = 'nameless')"),
        ("no dataclass", "allocator 'no-dataclass' cannot be used"),
    ],
)
def test_what_cannot_be_meant_is_one_line(outcomes: Mapping[str, Any], name: str, message: str) -> None:
    assert outcomes[name]["code"] == 2
    (line,) = outcomes[name]["err"].splitlines()
    assert message in line


def test_their_metric_is_measured_and_ranks(outcomes: Mapping[str, Any], there: Path) -> None:
    assert (outcomes["measure"]["code"], outcomes["allocate"]["code"]) == (0, 0)
    report = json.loads((there / "report.json").read_text())
    assert all(block["metrics"]["weight_max"] > 0 for block in report["blocks"])
    assert json.loads((there / "plan.json").read_text())["allocator"]["parameters"]["metric"] == "weight_max"


def test_from_python(python: Callable[..., str]) -> None:
    printed = python(
        "import owl_compress as oc\n"
        "loaded = oc.load('model')\n"
        "windows = oc.calibrate(loaded, 'text.txt', samples=2, seq_len=32)\n"
        "plan = oc.allocate(oc.measure(loaded.model, windows), 'last-heaviest', sparsity=0.5, slope=0.3)\n"
        "result = oc.compress_(loaded.model, plan, 'soft-threshold', shrink=0.5)\n"
        "print(plan.allocator.parameters['slope'], result.backend.parameters)\n"
    )
    assert printed == "0.3 {'shrink': 0.5, 'ties': 'first'}\n"
