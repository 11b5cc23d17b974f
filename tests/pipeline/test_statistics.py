"""A run on the statistics of the dense model: how often blocks run, what is written, and the same again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.result import Result
from owl_compress.errors import RequestError
from owl_compress.pipeline.execution import run
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stages import (
    compress_,
    load,
)
from owl_compress.pipeline.trial import try_out
from owl_compress.pipeline.windows import hold_out

MakeRecipe = Callable[..., Recipe]
Count = Callable[..., Any]
DENSITY = ("wanda", {"sparsity": 0.6})
NM = ("wanda", {"nm": "2:4"})
WIDTH = ("structured", {"prune_ratio": 0.4, "round_to": 8})
LOOK = 2  # how often a block runs while the walk is compared with the model; the first once more, on a token
CAPTURED = 1


def passes(counts: list[list[int]], n_windows: int) -> list[float]:
    """How often each block ran over the calibration windows of 32 tokens."""
    return [(lengths.count(32) - LOOK) / n_windows for lengths in counts]


@pytest.mark.parametrize(("backend", "options"), [DENSITY, NM, WIDTH], ids=["density", "nm", "width"])
@pytest.mark.parametrize("allocator", ["owl", "uniform"])
def test_one_pass_serves_importance_and_compression(
    here: Path, recipe: MakeRecipe, forwards_counted: Count, backend: str, options: dict[str, Any],
    allocator: str,
) -> None:  # fmt: skip
    loaded = load("model")
    with forwards_counted(loaded.model) as counts:
        run(recipe(backend, **options, allocator=allocator, statistics="dense"), None, loaded)
    assert passes(counts, 4) == [1, 1, 1]


@pytest.mark.parametrize(
    ("backend", "options", "expected"),
    [
        ("wanda", {"sparsity": 0.6}, "dense"),
        ("wanda", {"sparsity": 0.61}, "sequential"),
        ("wanda", {"nm": "2:4"}, "dense"),
        ("wanda", {"nm": "3:8"}, "sequential"),
        ("wanda", {"sparsity": 0.5, "scope": "linear"}, "sequential"),
        ("wanda", {"sparsity": 0.5, "scope": "model"}, "sequential"),
        ("sparsegpt", {"sparsity": 0.5}, "sequential"),
        ("gptq", {"bits": 3, "bit_choices": "3", "group_size": 8}, "true-sequential"),
        (*WIDTH, "sequential"),
    ],
)
def test_without_a_word_a_backend_has_what_serves_it(
    here: Path, recipe: MakeRecipe, backend: str, options: dict[str, Any], expected: str
) -> None:
    of_backend = {name: options[name] for name in ("scope", "round_to", "group_size") if name in options}
    asked, by_plan = recipe(backend, **options), recipe(backend, plan="OUT/plan.json", **of_backend)
    assert run(asked, "OUT").result.statistics == expected
    assert run(by_plan, None).result.statistics == expected
    session, plan = Session.open(asked), Plan.read("OUT/plan.json")
    result = compress_(session.loaded.model, plan, backend, session.calibration, **of_backend)
    assert result.statistics == expected


def test_a_law_that_drifts_off_its_budget_changes_nothing_of_it(here: Path, recipe: MakeRecipe) -> None:
    drifting = {"nm": "3:8", "owl_law": "published-special", "lam": 2.0, "metric": "lod@1.2"}
    outcome = run(recipe("wanda", **drifting), "OUT")
    assert outcome.plan.asked == 0.375
    assert outcome.plan.target > 0.4
    again = run(recipe("wanda", plan="OUT/plan.json"), None)
    assert outcome.result.statistics == again.result.statistics == "sequential"


def test_sequential_statistics_take_three(here: Path, recipe: MakeRecipe, forwards_counted: Count) -> None:
    loaded = load("model")
    with forwards_counted(loaded.model) as counts:
        run(recipe("wanda", sparsity=0.6, statistics="sequential"), None, loaded)
    assert passes(counts, 4) == [3, 3, 2]  # nothing reads the outputs of the last block


@pytest.mark.parametrize(
    ("backend", "options"),
    [WIDTH, ("wanda", {"sparsity": 0.6, "scope": "model"})],
    ids=["width", "model-wide"],
)
def test_a_survey_does_not_look_again_at_what_measuring_has_seen(
    here: Path, recipe: MakeRecipe, forwards_counted: Count, backend: str, options: dict[str, Any]
) -> None:
    kept = {name: value for name, value in options.items() if name not in {"sparsity", "prune_ratio"}}
    for out, asked in (
        ("MEASURED", recipe(backend, **options)),
        ("SURVEYED", recipe(backend, plan="MEASURED/plan.json", **kept)),  # for which nobody measures
    ):
        loaded = load("model")
        with forwards_counted(loaded.model) as counts:
            run(asked, out, loaded)
        assert passes(counts, 4) == [3, 3, 2]
    for name in ("model.safetensors", "plan.json"):
        assert Path("MEASURED", name).read_bytes() == Path("SURVEYED", name).read_bytes()


def test_a_survey_looks_itself_where_measuring_saw_other_windows(
    here: Path, recipe: MakeRecipe, forwards_counted: Count
) -> None:
    loaded = load("model")
    with forwards_counted(loaded.model) as counts:
        run(recipe(WIDTH[0], **WIDTH[1], measure_samples=1), None, loaded)
    assert passes(counts, 4) == [3.25, 3.25, 2.25]


def test_fewer_windows_to_measure_on_are_a_pass_of_their_own(
    here: Path, recipe: MakeRecipe, forwards_counted: Count
) -> None:
    loaded = load("model")
    asked = recipe("wanda", sparsity=0.6, statistics="dense", measure_samples=1)
    with forwards_counted(loaded.model) as counts:
        outcome = run(asked, None, loaded)
    assert passes(counts, 4) == [1.25] * 3
    assert outcome.report is not None
    assert outcome.report.provenance.calibration is not None
    assert outcome.report.provenance.calibration.sequences == 1
    assert outcome.result.calibration is not None
    assert outcome.result.calibration.sequences == 4


def test_importance_is_measured_on_every_window_that_the_backend_is_told_of(
    here: Path, recipe: MakeRecipe, make_windows: Callable[..., TokenWindows]
) -> None:
    loaded, windows = load("model"), make_windows(sequences=20, seq_len=8)
    for backend, expected in (("wanda", 20), ("magnitude", 16)):  # which asks for no statistics
        session = Session.open(recipe(backend, sparsity=0.5, statistics="dense"), loaded, windows)
        assert session.measuring is not None
        assert torch.equal(session.measuring.ids, windows.ids[:expected])


@pytest.mark.parametrize("measure_samples", [None, 2])
@pytest.mark.parametrize(("backend", "options"), [DENSITY, WIDTH], ids=["density", "width"])
def test_the_recipe_that_is_written_makes_the_same_bytes(
    here: Path, recipe: MakeRecipe, backend: str, options: dict[str, Any], measure_samples: int | None
) -> None:
    asked = recipe(backend, **options, statistics="dense")
    if measure_samples:
        asked = asked.with_options({"measure_samples": measure_samples})
    run(asked, "ONE")
    written = Recipe.read("ONE/recipe.yaml")
    assert (written.statistics, written.measure_samples) == ("dense", measure_samples or 4)
    run(written, "TWO")
    for name in ("model.safetensors", "report.json", "plan.json", "recipe.yaml", "README.md"):
        assert Path("ONE", name).read_bytes() == Path("TWO", name).read_bytes(), name


def test_result_card_and_recipe_say_whose_inputs_they_were(here: Path, recipe: MakeRecipe) -> None:
    for backend, options, expected in (
        ("wanda", {"sparsity": 0.6, "statistics": "sequential"}, "sequential"),
        ("wanda", {"sparsity": 0.6, "statistics": "dense"}, "dense"),
        ("magnitude", {"sparsity": 0.6}, None),
    ):
        out = f"{backend}-{expected}"
        run(recipe(backend, **options), out)
        assert Result.read(f"{out}/result.json").statistics == expected
        assert ('"statistics"' in Path(out, "result.json").read_text()) == (expected is not None)
        assert Recipe.read(f"{out}/recipe.yaml").statistics == expected
        card = Path(out, "README.md").read_text()
        assert ("saw the inputs of the dense model" in card) == (expected == "dense")
        assert ("behind the compressed ones before it" in card) == (expected == "sequential")


def test_a_plan_is_carried_out_on_dense_statistics_in_one_pass(
    here: Path, recipe: MakeRecipe, forwards_counted: Count
) -> None:
    run(recipe("wanda", sparsity=0.6, statistics="dense"), "ONE")
    loaded = load("model")
    with forwards_counted(loaded.model) as counts:
        run(recipe("wanda", plan="ONE/plan.json", statistics="dense"), "TWO", loaded)
    assert passes(counts, 4) == [1, 1, 1]
    assert Path("ONE/model.safetensors").read_bytes() == Path("TWO/model.safetensors").read_bytes()


def test_a_trial_on_a_copy_is_what_a_run_does(
    here: Path, recipe: MakeRecipe, state_bytes: Callable[..., dict[str, str]]
) -> None:
    session = Session.open(recipe("wanda", sparsity=0.6, statistics="dense"))
    trial = try_out(session, hold_out(session.loaded, "other.txt", seq_len=32))
    loaded = load("model")
    run(session.recipe, None, loaded)
    assert trial.result.statistics == "dense"
    assert state_bytes(trial.session.loaded.model) == state_bytes(loaded.model)


def test_a_skipped_linear_is_left_alone(here: Path, recipe: MakeRecipe) -> None:
    loaded, dense = load("model"), load("model")
    name = "model.layers.1.mlp.up_proj"
    run(recipe("wanda", sparsity=0.6, statistics="dense", skip=name), None, loaded)
    weight = f"{name}.weight"
    assert torch.equal(loaded.model.get_parameter(weight), dense.model.get_parameter(weight))


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("sparsegpt", {"sparsity": 0.6}),
        ("gptq", {"bits": 3, "group_size": 16}),
        ("structured", {"prune_ratio": 0.4, "repair": True}),
    ],
)
def test_a_backend_that_needs_more_refuses_before_the_model_is_loaded(
    here: Path, recipe: MakeRecipe, backend: str, options: dict[str, Any]
) -> None:
    with pytest.raises(
        RequestError, match=f"statistics dense: backend '{backend}' .* use sequential"
    ) as told:
        run(recipe(backend, model="nowhere", statistics="dense", **options), "OUT")
    assert "\n" not in str(told.value)
    assert not Path("OUT").exists()


def test_from_python_a_model_is_compressed_on_dense_statistics(here: Path, recipe: MakeRecipe) -> None:
    outcome = run(recipe("wanda", sparsity=0.6, statistics="dense"), "OUT")
    session = Session.open(recipe("wanda", sparsity=0.6))
    model = session.loaded.model
    result = compress_(model, outcome.plan, "wanda", session.calibration, statistics="dense")
    assert result.statistics == "dense"
    saved = load("OUT").model
    assert all(
        torch.equal(one, other) for one, other in zip(model.parameters(), saved.parameters(), strict=True)
    )
    with pytest.raises(RequestError, match=r"statistics has to be .*one of 'dense', 'sequential'"):
        compress_(model, outcome.plan, "wanda", session.calibration, statistics=3)  # type: ignore[arg-type]
