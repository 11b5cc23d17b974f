"""A backend that writes its own checkpoint, by one that rounds: what it is given, and what is made of it."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from owl_compress.compression.tasks import LinearOutcome
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.result import Fallback, Result
from owl_compress.documents.stored_format import StoredFormat
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.forms.codes import QuantizedWeight, coded_modules
from owl_compress.options import option
from owl_compress.pipeline.execution import compress_, make_plan, run
from owl_compress.pipeline.handover import compress_checkpoint_
from owl_compress.pipeline.methods import BACKENDS
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stages import load
from owl_compress.walk.input_statistics import Gram, Statistic

MakeRecipe = Callable[..., Recipe]
Listing = Callable[[Path], dict[str, str]]
BITS = {"bits": 3}


@dataclass(frozen=True)
class Seen:
    """What a backend was called with, and the files that lay in the dense folder."""

    dense: Path
    files: frozenset[str]
    plan: Plan
    windows: TokenWindows
    device: torch.device
    out: Path


@dataclass(frozen=True)
class Writer:
    """Rounds rows to nearest, and hands its outcomes back in the wrong order."""

    temper: str = option("calm", "calm, damped or broken.", stated=True)

    name: ClassVar[str] = "writer"
    unit: ClassVar[Unit] = Unit.BITS
    statistic: ClassVar[type[Statistic] | None] = Gram
    error_measure: ClassVar[str] = "none"
    stored_format: ClassVar[StoredFormat] = StoredFormat("rows", "They are rows of integers", "Nothing does.")
    seen: ClassVar[list[Seen]] = []
    is_there: ClassVar[bool] = True

    def check_ready(self, plan: Plan | None = None) -> None:
        if not self.is_there:
            raise RequestError("backend 'writer' needs the package writer")

    def compress_checkpoint(
        self, dense: Path, plan: Plan, windows: TokenWindows, device: torch.device, out: Path
    ) -> Sequence[LinearOutcome]:
        files = frozenset(path.name for path in dense.iterdir())
        self.seen.append(Seen(dense, files, plan, windows, device, out))
        if self.temper == "broken":
            raise RequestError("writer does not take this model")
        tensors = load_file(dense / "model.safetensors")
        outcomes = []
        for budget in plan.budgets:
            weight, most = tensors.pop(f"{budget.name}.weight"), 2 ** (round(budget.value) - 1) - 1
            scales = weight.abs().amax(dim=1, keepdim=True) / most
            codes = (weight / scales).round().to(torch.int8)
            tensors |= {f"{budget.name}.codes": codes, f"{budget.name}.scales": scales}
            quantized = QuantizedWeight(codes, scales, None, round(budget.value), None)
            damped = (Fallback(what="damping raised", where=budget.name),) if self.temper == "damped" else ()
            outcomes.append(LinearOutcome(budget.name, budget.value, 0.1, 0.1, damped, quantized))
        save_file(tensors, out / "model.safetensors")
        (out / "config.json").write_text("{}")
        return outcomes[::-1]


@pytest.fixture(autouse=True)
def writer(monkeypatch: pytest.MonkeyPatch) -> type[Writer]:
    """The backend, registered as by another package; `seen` is what it was given."""
    module = ModuleType("a_writer")
    module.__dict__["Writer"] = Writer
    monkeypatch.setitem(sys.modules, "a_writer", module)
    monkeypatch.setitem(BACKENDS._paths, "writer", "a_writer:Writer")
    monkeypatch.setattr(Writer, "seen", [])
    return Writer


def test_a_run_leaves_what_the_backend_wrote_and_our_documents(
    here: Path, recipe: MakeRecipe, writer: type[Writer]
) -> None:
    outcome = run(recipe("writer", **BITS), "OUT")
    assert {path.name for path in Path("OUT").iterdir()} == {
        "model.safetensors", "config.json",
        "result.json", "plan.json", "report.json", "recipe.yaml", "README.md",
    }  # fmt: skip
    assert sorted(path.name for path in here.iterdir()) == ["OUT", "model", "other.txt", "text.txt"]
    assert Result.read("OUT/result.json") == outcome.result
    assert "They are rows of integers" in Path("OUT/README.md").read_text()
    totals = outcome.result.totals
    assert totals.bytes_on_disk == Path("OUT/model.safetensors").stat().st_size
    assert totals.bits_per_weight == pytest.approx(8 * totals.bytes_on_disk / 44_448)
    assert totals.n_params_before == totals.n_params_after == 44_448


def test_it_is_given_the_dense_checkpoint_the_plan_and_the_windows(
    here: Path, recipe: MakeRecipe, writer: type[Writer]
) -> None:
    session = Session.open(recipe("writer", **BITS))
    _, plan = make_plan(session)
    (here / "OUT").mkdir()
    compress_(session, plan, here / "OUT")
    (seen,) = writer.seen
    assert (seen.plan, seen.device, seen.out) == (plan, torch.device("cpu"), here / "OUT")
    assert seen.windows is session.calibration
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= seen.files
    assert seen.dense.is_relative_to(seen.out)
    assert not seen.dense.exists()


def test_outcomes_are_set_against_the_plan_in_its_order(here: Path, recipe: MakeRecipe) -> None:
    outcome = run(recipe("writer", **BITS), "OUT")
    rows = [(row.name, row.asked, row.achieved) for row in outcome.result.budgets]
    assert rows == [(budget.name, budget.value, budget.value) for budget in outcome.plan.budgets]
    assert len({achieved for _, _, achieved in rows}) > 1


def test_the_model_in_memory_becomes_what_the_codes_stand_for(here: Path, recipe: MakeRecipe) -> None:
    loaded = load("model")
    result = run(recipe("writer", **BITS, data="other.txt"), "OUT", loaded).result
    saved = load_file("OUT/model.safetensors")
    codes = {name: quantized for name, _, quantized in coded_modules(loaded.model)}
    assert codes.keys() == {row.name for row in result.budgets}
    for name in codes:
        weight = saved[f"{name}.codes"].float() * saved[f"{name}.scales"]
        assert torch.equal(loaded.model.get_parameter(f"{name}.weight"), weight)
    assert result.evaluation is not None
    assert result.evaluation.dense.perplexity != result.evaluation.compressed.perplexity


def test_the_recipe_makes_it_again(here: Path, recipe: MakeRecipe) -> None:
    run(recipe("writer", **BITS), "ONE")
    written = Recipe.read("ONE/recipe.yaml")
    assert (written.options, written.format_) == ({"temper": "calm"}, None)
    run(written, "TWO")
    for path in Path("ONE").iterdir():
        if path.name != "result.json":  # which holds durations
            assert path.read_bytes() == Path("TWO", path.name).read_bytes(), path.name


def test_it_has_one_instance(
    here: Path, recipe: MakeRecipe, writer: type[Writer], count_made: Callable[[type], list[Any]]
) -> None:
    made = count_made(writer)
    run(recipe("writer", **BITS), "OUT")
    assert len(made) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temper": "broken"}, "writer does not take this model"),
        ({"temper": "damped", "strict": True}, "--strict: damping raised at model.layers.0.self_attn.q_proj"),
    ],
)
def test_what_is_refused_leaves_nothing(
    here: Path, recipe: MakeRecipe, listing: Listing, options: dict[str, Any], message: str
) -> None:
    before = listing(here)
    with pytest.raises(RequestError) as caught:
        run(recipe("writer", **BITS, **options), "deep/OUT")
    assert message in str(caught.value)
    assert listing(here) == before


def test_a_fallback_is_in_the_result(here: Path, recipe: MakeRecipe) -> None:
    result = run(recipe("writer", **BITS, temper="damped"), "OUT").result
    assert [fallback.where for fallback in result.fallbacks] == [row.name for row in result.budgets]


def test_a_package_that_is_missing_is_told_before_the_model_is_loaded(
    here: Path, recipe: MakeRecipe, writer: type[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "is_there", False)
    with pytest.raises(RequestError, match="needs the package writer"):
        run(recipe("writer", model="./nowhere", **BITS), "OUT")


def test_it_has_a_format_of_its_own(here: Path, recipe: MakeRecipe) -> None:
    with pytest.raises(RequestError, match="writes a format of its own: drop --format"):
        run(recipe("writer", model="./nowhere", **BITS, format="packed"), "OUT")


def test_without_a_folder_it_cannot_write(here: Path, recipe: MakeRecipe, writer: type[Writer]) -> None:
    session = Session.open(recipe("writer", **BITS))
    _, plan = make_plan(session)
    with pytest.raises(RequestError, match="'writer' writes its own checkpoint: name a folder"):
        compress_(session, plan)
    assert writer.seen == []


def test_a_plan_of_another_model_is_refused(here: Path, recipe: MakeRecipe, writer: type[Writer]) -> None:
    session = Session.open(recipe("writer", **BITS))
    _, plan = make_plan(session)
    with pytest.raises(RequestError, match="plan has no budget for linear"):
        compress_checkpoint_(session, writer(), plan.model_copy(update={"budgets": plan.budgets[1:]}), here)
    assert writer.seen == []


def test_without_text_it_is_refused(
    here: Path, recipe: MakeRecipe, writer: type[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "statistic", None)
    session = Session.open(recipe("writer", allocator="uniform", **BITS))
    _, plan = make_plan(session)
    assert session.calibration is None
    with pytest.raises(RequestError, match="backend 'writer' needs calibration text: give --calib"):
        compress_(session, plan, here)
    assert writer.seen == []


def test_it_is_not_told_of_the_dense_model_since_it_gathers_its_own(
    here: Path, recipe: MakeRecipe, writer: type[Writer]
) -> None:
    with pytest.raises(RequestError, match="'writer' gathers its own on the checkpoint: use sequential"):
        Session.open(recipe("writer", **BITS, statistics="dense"))
    outcome = run(recipe("writer", **BITS, statistics="sequential"), "OUT")
    assert outcome.result.statistics is None
