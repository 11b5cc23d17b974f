"""README and docs/ say what is true: Python runs, commands parse, nothing registered is missing."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

import owl_compress
from owl_compress.allocators import ALLOCATORS
from owl_compress.backends import BACKENDS
from owl_compress.cli.application import application
from owl_compress.cli.options import typed_options
from owl_compress.documents.grid import Grid
from owl_compress.documents.recipe import Recipe, is_recipe
from owl_compress.documents.yaml12 import load_plain
from owl_compress.exports import EXPORTERS
from owl_compress.importance.metrics import METRICS
from owl_compress.options import options_of
from owl_compress.pipeline.comparison.cells import cells_of, grid_names
from owl_compress.pipeline.limits import asks_for_limit, everything_kept
from owl_compress.pipeline.request import allocator_of, backend_of, check_unit
from owl_compress.pipeline.targets import target_of
from owl_compress.pipeline.tuning_candidates import candidates_of
from owl_compress.recovery.methods import METHODS as RECOVERIES

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
MEASURED, STUDIES = "docs/measured.md", "docs/studies.md"


def blocks(language: str, text: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands() -> list[list[str]]:
    """Every owl-compress command line, as words, each once."""
    found = [block.replace("\\\n", " ") for text in PAGES.values() for block in blocks("sh", text)]
    lines = [line for block in found for line in block.splitlines() if line.startswith("owl-compress")]
    return [shlex.split(line, comments=True) for line in dict.fromkeys(lines)]


def known_options() -> set[str]:
    """The options of the program and of all its commands."""
    program: Any = get_command(application([]))
    groups: dict[str, Any] = {name: get_command(application([name, "--help"])) for name in program.commands}
    parameters = [one for name, group in groups.items() for one in group.commands[name].params]
    return {option for parameter in [*program.params, *parameters] for option in parameter.opts}


def test_every_command_is_shown() -> None:
    known = set(get_command(application([])).commands)  # type: ignore[attr-defined]
    assert {words[1] for words in commands()} >= known - {"demo"}  # which `make demo` runs


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_can_be_meant(words: list[str]) -> None:
    if words[1].startswith("-"):
        return  # an option of the program itself
    group: Any = get_command(application(words[1:]))
    context = group.commands[words[1]].make_context(words[1], words[2:])
    if words[1] in {"run", "allocate", "tune"} and not is_recipe(words[2]):
        allocator = "auto" if words[1] == "tune" else "owl"
        defaults = {"model": "MODEL", "allocator": allocator, "backend": "wanda"}
        recipe = Recipe.from_options(defaults | typed_options(context))
        target = everything_kept(recipe, {}) if asks_for_limit(recipe) else target_of(recipe)
        if recipe.allocator == "auto":
            assert candidates_of(recipe, target)
        else:
            allocator_of(recipe).settled(target)
        backend_of(recipe)
        if words[1] != "allocate":
            check_unit(recipe.backend, target.unit)


def test_readme_is_no_manual() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 250


def test_make_targets_exist() -> None:
    readme = PAGES["README.md"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"^make (\w+)", "\n".join(blocks("sh", readme)), re.M) == ["demo", "test"]
    for target in re.findall(r"`make (\w+)`", "\n".join(PAGES.values())):
        assert re.search(rf"^{target}:", makefile, re.M), target


class TestPython:
    """Code runs as it stands, but for a smaller model and shorter windows."""

    SMALLER = (
        ('load("builtin")', 'load("model")'), ("seq_len=512", "seq_len=32"), ("windows=16", "windows=2"),
        ('"model": "builtin"', '"model": "model"'), ('"seq_len": 512', '"seq_len": 32'),
        ('"max_windows": 16', '"max_windows": 2'),
    )  # fmt: skip

    def run(self, page: str) -> dict[str, Any]:
        code = "\n".join(blocks("python", PAGES[page]))
        for theirs, ours in self.SMALLER:
            code = code.replace(theirs, ours)
        assert code
        namespace: dict[str, Any] = {"__name__": "documentation"}
        exec(compile(code, page, "exec", dont_inherit=True), namespace)
        return namespace

    @pytest.fixture
    def model(self, here: Path) -> Path:
        return here / "model"

    def test_of_readme(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        namespace = self.run("README.md")
        assert re.fullmatch(
            r"\d+\.\d -> \d+\.\d at density 0\.\d{4}", capsys.readouterr().out.splitlines()[0]
        )
        assert len(namespace["sparsity"]) == 3 * 7
        assert (model.parent / "OUT" / "model.safetensors").is_file()

    def test_of_the_reference(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run("docs/python.md")
        first, density, size, tried, whole = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"\d+\.\d -> \d+\.\d", first)
        assert float(density) == pytest.approx(0.4, abs=1e-3)
        assert int(size) > 0
        assert re.fullmatch(r"\d+\.\d+ 0\.\d+", tried)
        assert whole == "True"

    def test_of_the_first_steps(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        loaded = owl_compress.load("model")
        calibration = owl_compress.calibrate(loaded, "builtin", samples=2, seq_len=16)
        report = owl_compress.measure(loaded.model, calibration)
        owl_compress.allocate(report, "uniform", sparsity=0.5).write("plan.json")
        rest = {
            "backend": "wanda",
            "calib": "builtin",
            "data": "builtin",
            "samples": 2,
            "seq_len": 16,
            "max_windows": 1,
        }
        for folder in "ABC":
            recipe = Recipe.from_options({"model": "model", "sparsity": 0.5, "allocator": "uniform", **rest})
            owl_compress.run(recipe, folder)
        sparsity = self.run("docs/start.md")["sparsity"]
        assert set(sparsity.values()) == {0.5}
        rows = capsys.readouterr().out.splitlines()
        assert all(re.fullmatch(r"[ABC] kept 0\.\d{4} perplexity \d+\.\d\d", row) for row in rows)
        assert len(rows) == 3

    def test_of_tuning(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run("docs/tune.md")
        name, achieved = capsys.readouterr().out.rsplit(maxsplit=1)
        assert name.partition(",")[0] in {"uniform", "linear-depth"}
        assert float(achieved) == pytest.approx(0.5, abs=1e-3)

    def test_of_methods_of_ones_own(self, model: Path) -> None:
        made = self.run("docs/extending.md")
        loaded = owl_compress.load("model")
        calibration = owl_compress.calibrate(loaded, "builtin", samples=2, seq_len=16)
        report = owl_compress.measure(loaded.model, calibration)
        plan = owl_compress.allocate(report, made["LastHeaviest"](slope=0.2), sparsity=0.5)
        values = [block.value for block in plan.per_block]
        assert values == sorted(values)
        assert values[0] < values[-1]
        result = owl_compress.compress_(loaded.model, plan, made["Shrink"](share=0.1), calibration)
        assert result.totals.achieved == pytest.approx(0.5, abs=1e-3)
        assert {option.shown_name for option in options_of(made["Shrink"])} == {"share"}


@pytest.mark.parametrize("page", PAGES)
def test_recipes_are_recipes(page: str) -> None:
    for block in blocks("yaml", PAGES[page]):
        if block.startswith("# grid"):
            continue
        recipe = Recipe.from_options(yaml.safe_load(block))
        allocator_of(recipe)
        backend_of(recipe)


@pytest.mark.parametrize("page", PAGES)
def test_grids_are_grids(page: str) -> None:
    for block in blocks("yaml", PAGES[page]):
        if block.startswith("# grid"):
            grid = Grid.of(load_plain(block), grid_names())
            assert all(cell.request for cell in cells_of(grid, ROOT))


def test_the_least_plan_is_a_plan(tmp_path: Path) -> None:
    (block,) = blocks("json", PAGES["docs/files.md"])
    (tmp_path / "plan.json").write_text(block, encoding="utf-8")
    assert owl_compress.Plan.read(tmp_path / "plan.json").achieved == 0.5


@pytest.mark.parametrize(
    ("registry", "page"),
    [
        (ALLOCATORS, "docs/allocators.md"),
        (BACKENDS, "docs/backends.md"),
        (METRICS, "docs/files.md"),
        (EXPORTERS, "docs/exchange.md"),
        (RECOVERIES, "docs/recover.md"),
    ],
)
def test_everything_registered_is_described(registry: Any, page: str) -> None:
    rows = re.findall(r"^(?:- |\| )`([\w@-]+)`", PAGES[page], re.M)
    assert {name.replace("@M", "") for name in rows} >= {name.split("@")[0] for name in registry.builtin}


def test_every_option_is_real() -> None:
    outside = {
        "--nproc-per-node",
        "--nnodes",
        "--rdzv-backend",
        "--rdzv-endpoint",
        "--nodes",
        "--ntasks-per-node",
        "--gpus-per-node",
        "--entrypoint-num-gpus",
        "--no-python",
        "--no-deps",
        "--perturb",
        "--help",
        "--no",
        "--merge",
        "--model",
        "--tensor-type-file",
    }  # of others; --no-NAME
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", "\n".join(PAGES.values())))
    lines = "\n".join(re.findall(r"^- `python .*`$", PAGES[MEASURED], re.M))
    lines += "\n".join(re.findall(r"^python benchmarks/.*$", PAGES[STUDIES], re.M))
    of_benchmarks = set(re.findall(r"--[a-z][a-z-]*[a-z]", lines))
    assert named - outside - of_benchmarks <= known_options()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]):
        made = link.startswith("schemas/")  # by docs/hooks.py
        assert made or link.startswith("https://") or ((ROOT / page).parent / link).exists(), link


def test_figures_of_the_readme_are_measured() -> None:
    rows = re.findall(r"^\| (?:dense|wanda|sparsegpt) .*\|$", PAGES["README.md"], re.M)
    assert rows
    assert all(row in PAGES[MEASURED].splitlines() for row in rows)
