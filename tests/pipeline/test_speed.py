"""A time that is asked for, by a cost table: the largest plan within it, or refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_compress.documents.costs import CostTable, PartSeconds
from owl_compress.documents.measurements import LatencyShape
from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError
from owl_compress.evaluation.part_costs import measure_costs
from owl_compress.pipeline.execution import make_plan, run
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stages import (
    identity_of,
    load,
)

MakeRecipe = Callable[..., Recipe]
WIDE: dict[str, Any] = {"round_to": 1, "allocator": "uniform"}
SHAPE = LatencyShape(batch_size=2, prompt_len=8, new_tokens=2)
REST, PER_WEIGHT = 1.0, {"attention": 2e-3, "mlp": 1e-3}


@pytest.fixture
def measured(here: Path) -> CostTable:
    """Of the tiny model, at half and a quarter of its units."""
    loaded = load("model")
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    found = measure_costs(loaded.model, identity_of(loaded), SHAPE, torch.device("cpu"), (0.25, 0.5), runs=1)
    after = loaded.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    return found


def known(table: CostTable) -> CostTable:
    """The same with times that are known: some for all weights alike, and some for everything else."""
    content = table.model_dump(mode="json")
    content["rest"] = {"prefill": REST, "decode": REST / 10}
    for part in content["parts"]:
        for width in part["widths"]:
            seconds = PER_WEIGHT[part["part"]] * width["n_weights"]
            width["seconds"] = {"prefill": seconds, "decode": seconds / 10}
    return CostTable.model_validate(content)


@pytest.fixture
def table(measured: CostTable) -> CostTable:
    made = known(measured)
    made.write("costs.json")
    return made


def seconds_of(folder: str) -> float:
    """By the sizes of the saved tensors."""
    model = load(folder).model
    total = REST
    for name, parameter in model.named_parameters():
        for part, mark in (("attention", ".self_attn."), ("mlp", ".mlp.")):
            total += PER_WEIGHT[part] * parameter.numel() if mark in name else 0
    return total


def test_a_table_names_the_parts_of_the_model_at_every_width(measured: CostTable) -> None:
    assert {part.part for part in measured.parts} == {"attention", "mlp"}
    attention, mlp = sorted(measured.parts, key=lambda part: part.part)
    assert attention.blocks == mlp.blocks == tuple(f"model.layers.{i}" for i in range(3))
    assert [(one.kv_heads, one.heads) for one in attention.widths] == [(1, 1), (1, 2), (2, 4)]
    assert [one.channels for one in mlp.widths] == [16, 32, 64]
    assert [one.n_weights for one in mlp.widths] == [3 * 32 * 16, 3 * 32 * 32, 3 * 32 * 64]
    assert attention.widths[-1].n_weights == 32 * (32 + 16 + 16 + 32)
    assert measured.seconds("prefill") > measured.rest.prefill > 0


def test_a_table_survives_its_file_and_interpolates_in_straight_lines(table: CostTable) -> None:
    assert CostTable.read("costs.json") == table
    mlp = table.by_part["model.layers.1", "mlp"]
    for n_weights in (1536, 2000, 3072, 5000, 6144):
        assert mlp.seconds("prefill", n_weights) == pytest.approx(PER_WEIGHT["mlp"] * n_weights)
    assert mlp.seconds("prefill", 0) == 0
    assert mlp.seconds("prefill", 7) == mlp.widths[0].seconds.prefill, "never extrapolated"
    assert mlp.seconds("decode", 3072) == pytest.approx(PER_WEIGHT["mlp"] * 307.2)


@pytest.mark.parametrize(
    "options", [{"speedup": 1.5}, {"latency": "22s"}, {"latency": "2.2", "phase": "decode"}]
)
def test_the_plan_is_the_largest_whose_predicted_time_is_within_the_limit(
    here: Path, recipe: MakeRecipe, table: CostTable, options: dict[str, Any]
) -> None:
    done = run(recipe("structured", cost_table="costs.json", **options, **WIDE), "OUT")
    told = done.plan.allocator.parameters
    factor = 10 if "phase" in options else 1
    limit = seconds_of("model") / 1.5 if "speedup" in options else 22.0
    assert told["asked_seconds"] == pytest.approx(limit / factor)
    assert told["predicted_seconds"] <= told["asked_seconds"] * (1 + 1e-9)
    # attention goes in steps of a head, which channels make up for: within one head's worth
    head = 2 * 8 * 32 * PER_WEIGHT["attention"] * 3
    assert limit - head < seconds_of("OUT") < limit + head
    if "speedup" in options:
        assert told["asked_speedup"] == 1.5 <= told["predicted_speedup"] < 1.6
    again = run(Recipe.read("OUT/recipe.yaml"), "AGAIN")
    assert again.plan == done.plan


def test_a_speedup_of_one_keeps_everything(here: Path, recipe: MakeRecipe, table: CostTable) -> None:
    asked = recipe("structured", speedup=1, cost_table="costs.json", **WIDE)
    assert make_plan(Session.open(asked))[1].achieved == 1


def test_a_time_that_cannot_be_met_names_the_least(here: Path, recipe: MakeRecipe, table: CostTable) -> None:
    with pytest.raises(
        RequestError, match=r"speedup 50 of the prefill cannot be met: .* a speedup of 3\."
    ) as caught:
        make_plan(Session.open(recipe("structured", speedup=50, cost_table="costs.json", **WIDE)))
    assert "\n" not in str(caught.value)


def test_a_part_narrower_than_the_table_knows_is_refused_with_the_width_to_add(
    here: Path, recipe: MakeRecipe, table: CostTable
) -> None:
    pinned = {"set": {"*.0.mlp.*": 0.1, "*.0.self_attn.*": 0.5}, "granularity": "linear"}
    asked = recipe("structured", speedup=1.5, cost_table="costs.json", **WIDE, **pinned)
    with pytest.raises(
        RequestError, match=r"would keep .* knows nothing below 0\.25: measure narrower with eval"
    ):
        make_plan(Session.open(asked))


def test_levels_of_a_profile_that_were_not_timed_are_not_chosen(
    here: Path, recipe: MakeRecipe, table: CostTable
) -> None:
    damage = {"damage_samples": 2, "damage_len": 32}
    asked = recipe(
        "structured", speedup=1.2, cost_table="costs.json", round_to=1, allocator="sensitivity", **damage
    )
    session = Session.open(asked)
    plan = make_plan(session)[1]
    assert min(budget.value for budget in plan.budgets) >= 0.25
    assert plan.allocator.parameters["predicted_speedup"] >= 1.2


def test_a_table_of_no_time_at_the_narrowest_predicts_no_speedup(
    here: Path, recipe: MakeRecipe, table: CostTable
) -> None:
    content = table.model_dump(mode="json")
    content["rest"] = {"prefill": 0, "decode": 0}
    for part in content["parts"]:
        for width in part["widths"][:-1]:
            width["seconds"] = {"prefill": 0, "decode": 0}
    CostTable.model_validate(content).write("costs.json")
    plan = make_plan(Session.open(recipe("structured", speedup=1e9, cost_table="costs.json", **WIDE)))[1]
    assert plan.allocator.parameters["predicted_seconds"] == 0
    assert plan.allocator.parameters["predicted_speedup"] is None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda it: it["model"].update(family="opt"), "the cost table is of family opt, and this is llama"),
        (lambda it: it["model"].update(dtype="float16"), "of dtype float16, and this is float32"),
        (lambda it: it.update(device="Toaster 3000"), "of device Toaster 3000, and this is cpu"),
        (lambda it: it.update(threads=77), "of threads 77, and this is"),
        (lambda it: it["parts"].pop(), "the cost table is of another model: the "),
        (lambda it: it["parts"][0]["blocks"].pop(), "the cost table is of another model: the "),
        (lambda it: it["parts"][1]["widths"].pop(), "the cost table is of another model: the "),
        (lambda it: it["parts"][1]["widths"].reverse(), "have to rise, and"),
        (
            lambda it: it["parts"][1]["widths"][0]["seconds"].update(prefill=99),
            "time may not fall with width",
        ),
        (lambda it: it["parts"].append(it["parts"][0]), "is listed twice"),
        (lambda it: it["rest"].update(prefill=float("nan")), "costs.json"),
        (lambda it: it["rest"].update(prefill=-1), "rest.prefill: has to be 0"),
        (lambda it: it["rest"].update(prefill=1e308), "rest.prefill: has to be 1000000000.0 or less"),
        (lambda it: it.pop("shape"), "shape"),
        (lambda it: it.update(schema="owl-compress/plan/1"), "costs.json"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(
    here: Path, recipe: MakeRecipe, table: CostTable, edit: Callable[[Any], None], message: str
) -> None:
    content = json.loads(Path("costs.json").read_text())
    edit(content)
    Path("costs.json").write_text(json.dumps(content))
    with pytest.raises(RequestError) as caught:
        make_plan(Session.open(recipe("structured", speedup=1.5, cost_table="costs.json", **WIDE)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_narrower_is_no_faster(recipe: MakeRecipe) -> None:
    with pytest.raises(RequestError, match="speedup is for backends that make blocks narrower, and 'wanda'"):
        Request.of(recipe("wanda", speedup=2, cost_table="nowhere.json"))
    with pytest.raises(RequestError, match=r"nowhere\.json"):
        Request.of(recipe("structured", speedup=2, cost_table="nowhere.json"))


def test_seconds_of_a_phase() -> None:
    seconds = PartSeconds(prefill=1, decode=2)
    assert (seconds.of("prefill"), seconds.of("decode")) == (1, 2)
