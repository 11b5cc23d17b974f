"""`refine`: a plan on disk made better, and everything that is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import owl_compress
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.pipeline.refining import DamageText
from owl_compress.refinement.refined import RefinementOptions

DAMAGE = ("--damage-samples", "2", "--damage-len", "16")

Command = Callable[..., Any]


@pytest.fixture
def refine(text_options: tuple[str, ...]) -> tuple[str, ...]:
    """`refine` on the bad plan, all but the output."""
    return ("refine", "model", "--plan", "bad.json", *text_options, *DAMAGE)


def test_a_plan_is_made_better_and_carried_out(
    here: Path, done: Command, bad: Path, refine: tuple[str, ...], text_options: tuple[str, ...]
) -> None:
    outcome = done(*refine, "-o", "better.json")
    for words in ("Refinement of the plan by uniform, block by block", "1:8", "->", "yes", "tokens through"):
        assert words in outcome.out
    assert "at most" in outcome.err
    before, after = Plan.read("bad.json"), Plan.read("better.json")
    assert after.allocator.name == "refine"
    assert after.allocator.parameters["refined_from"] == before.fingerprint
    assert after.achieved <= before.target
    assert (after.target, after.grid, after.report) == (before.target, before.grid, before.report)
    found = done(*refine, "-o", "again.json", "--json").json
    assert found["plan"] == json.loads(Path("better.json").read_text())
    assert found["damage_after"] < found["damage_before"]
    assert found["attempts"][0]["moves"][0]["part"].startswith("model.layers.")
    assert Path("again.json").read_bytes() == Path("better.json").read_bytes()
    done("compress", "model", "--plan", "better.json", *text_options, "-o", "OUT", "--quiet")
    assert "refine" in Path("OUT/README.md").read_text()
    done("verify", "OUT")


def test_python_gives_the_same_plan(
    here: Path, done: Command, bad: Path, refine: tuple[str, ...], text_options: tuple[str, ...]
) -> None:
    done(*refine, "-o", "better.json", "--quiet")
    recipe = Recipe.from_options(
        {"model": "model", "plan": "bad.json", "backend": "wanda"}
        | {name.removeprefix("--"): value for name, value in zip(*[iter(text_options)] * 2, strict=True)}
    )
    session = owl_compress.Session.open(recipe)
    found = owl_compress.refine(session, RefinementOptions(), DamageText(samples=2, length=16))
    assert found.plan == Plan.read("better.json")


def test_a_plan_that_cannot_get_better_is_written_as_it_came(
    here: Path, done: Command, bad: Path, refine: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owl_compress.refinement.swap_rounds.best_moves", lambda *_: ())
    outcome = done(*refine, "-o", "same.json")
    assert "it ended as no moves that keep the budget gain anything" in outcome.out
    assert "nothing was gained: the plan is written as it came" in outcome.err
    assert Plan.read("same.json") == Plan.read("bad.json")


def test_pins_of_the_plan_that_are_none_are_refused(
    here: Path, refused: Callable[..., str], bad: Path, refine: tuple[str, ...]
) -> None:
    content = json.loads(bad.read_text())
    content["allocator"]["parameters"]["set"] = [1, 2]
    bad.write_text(json.dumps(content))
    assert "set [1, 2], which are no names with values" in refused(*refine, "-o", "same.json")


def test_evolution_of_a_plan_without_statistics(
    here: Path, done: Command, bad: Path, refine: tuple[str, ...]
) -> None:
    options = ("--backend", "magnitude", "--method", "evo", "--generations", "2", "--offspring", "4")
    found = done(*refine, *options, "-o", "better.json", "--json").json
    assert found["damage_after"] <= found["damage_before"]
    assert Plan.read("better.json").achieved <= Plan.read("bad.json").target


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "rtn"), "backend 'rtn' carries out budgets in bits, these are in density"),
        (("--method", "swap"), "method"),
        (("--pairs", "0"), "pairs"),
        (("--step", "0.1"), "step 0.1: budgets in this plan move from level to level"),
        (("--generations", "3"), "generations are of the method evo"),
        (("--max-cost", "10"), "max-cost 10 pays for no round"),
        (("--max-cost", "much"), "max-cost"),
        (("--damage-len", "1000"), "--damage-len"),
        (("--damage-data", "missing.txt"), "missing.txt"),
        (("--damage-samples", "100"), "has too little text beside the windows"),
        (("--part", "head"), "part"),
        (("--scope", "model"), "divides the budget by itself"),
        (("-o", "bad.json"), "bad.json"),
    ],
)
def test_what_is_refused(
    bad: Path, refused: Command, refine: tuple[str, ...], options: tuple[str, ...], message: str
) -> None:
    out = () if "-o" in options else ("-o", "better.json")
    assert message in refused(*refine, *options, *out)


def test_a_plan_of_another_model_is_refused(
    bad: Path, refused: Command, refine: tuple[str, ...], save_llama: Callable[..., None]
) -> None:
    save_llama("other", intermediate_size=96)
    told = refused("refine", "other", *refine[2:], "-o", "better.json")
    assert "the plan was made for another model" in told
