"""The model card: complete, deterministic, and silent about what was not measured."""

from pathlib import Path

import pytest
import yaml

from owl_compress.allocators.spread import PAPER
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.checkpoints.origin import Origin, origin_of
from owl_compress.checkpoints.stored_forms import form_named
from owl_compress.documents.accuracy import AccuracyChange, TaskAccuracy, by_task
from owl_compress.documents.coverage import Coverage, LeftOut
from owl_compress.documents.measurements import (
    DamageRecord,
    Evaluation,
    Footprint,
    FootprintChange,
    PerplexityRecord,
)
from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.provenance import CalibrationRecord, ModelIdentity
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.result import Fallback, LinearResult, MethodRecord, Result, Totals
from owl_compress.documents.sensitivity import (
    Measure,
    PartDamage,
    PartKind,
    ProfiledLinear,
    SensitivityProfile,
)
from owl_compress.documents.units import BitsGrid, Grid, KeptOfGrid, Unit
from owl_compress.pages.card import model_card

DENSE = form_named("dense").describe()
GOLDEN = Path(__file__).parent / "golden" / "card.md"
LINEARS = [(f"model.layers.{i}.mlp.{name}", f"model.layers.{i}") for i in (0, 1) for name in ("up", "down")]
RECIPE = Recipe(model="HuggingFaceTB/SmolLM2-135M", allocator="owl", backend="sparsegpt", sparsity=0.4)


def plan_of(
    unit: Unit = Unit.DENSITY, values: tuple[float, float] = (0.7, 0.5), grid: Grid | None = None
) -> Plan:
    return Plan(
        unit=unit, target=sum(values) / 2, grid=grid, low=0, high=16 if unit is Unit.BITS else 1,
        report="ab" * 32, skipped=("lm_head",),
        allocator=AllocatorRecord(name="owl", parameters={"metric": "lod@5", "lam": 0.08, "low": None}),
        budgets=tuple(
            LinearBudget(name=name, block=block, n_weights=100, value=values[int(block[-1])])
            for name, block in LINEARS
        ),
    )  # fmt: skip


def result_of(plan: Plan, *, evaluated: bool = True) -> Result:
    def measured(perplexity: float) -> PerplexityRecord:
        return PerplexityRecord(
            perplexity=perplexity, tokens=10220, windows=20, seq_len=512, dtype="float32",
            data="wikitext2", bos="first", n_params=1000,
        )  # fmt: skip

    return Result(
        model=ModelIdentity(id=RECIPE.model, revision="93efa2f", family="llama", dtype="float32"),
        backend=MethodRecord(name="sparsegpt", parameters={"block_size": 128, "dampening": 0.01}),
        error_measure="squared output error over squared dense output",
        totals=Totals(
            asked=plan.target, achieved=plan.achieved, n_weights=400, bits_per_weight=32.0,
            bytes_on_disk=4096, n_params_before=1000, n_params_after=1000,
        ),
        evaluation=Evaluation(dense=measured(29.308), compressed=measured(48.654)) if evaluated else None,
        fallbacks=(Fallback(what="damping raised to 0.1", where="model.layers.1.mlp.down", count=2),),
        notes=("generation_config.json is kept as the source has it",),
        calibration=CalibrationRecord(
            source="c4", token_ids_sha256="cd" * 32, sequences=128, seq_len=2048, sampling="random", seed=0,
            bos="first",
        ),
        seed=0, wall_seconds=12.5, peak_device_bytes=1, peak_host_bytes=2,
        versions={"torch": "2.13.0", "python": "3.11.7", "owl-compress": "0.1.0"},
        report=plan.report, plan="ef" * 32,
        budgets=tuple(
            LinearResult(
                name=budget.name, block=budget.block, unit=plan.unit, asked=budget.value,
                achieved=budget.value - 0.001, n_weights=100, relative_error=0.02, seconds=1.0,
            )
            for budget in plan.budgets
        ),
    )  # fmt: skip


def card_of(plan: Plan, *, evaluated: bool = True) -> str:
    result = result_of(plan, evaluated=evaluated)
    return model_card(
        result,
        plan,
        RECIPE.to_yaml(),
        Origin(base_model=RECIPE.model, license="apache-2.0"),
        stored=DENSE,
        credit=PAPER,
    )


def metadata(card: str) -> dict[str, object]:
    content = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(content, dict)
    return content


def test_card_is_the_golden_one() -> None:
    assert card_of(plan_of()) == GOLDEN.read_text(encoding="utf-8")


def test_nothing_that_differs_between_runs_is_in_the_card() -> None:
    plan = plan_of()
    slower = result_of(plan).model_copy(update={"wall_seconds": 99.0, "peak_host_bytes": 77})
    assert model_card(slower, plan, stored=DENSE) == model_card(result_of(plan), plan, stored=DENSE)


@pytest.mark.parametrize(
    ("unit", "values", "grid", "relation", "words"),
    [
        (Unit.DENSITY, (0.5, 0.5), None, "finetune", "50 % of the weights"),
        (Unit.DENSITY, (0.375, 0.375), KeptOfGrid(kept_of=8), "finetune", "3 of every 8 weights"),
        (Unit.WIDTH, (0.8, 0.8), None, "finetune", "20 % of the removable parameters"),
        (Unit.BITS, (3, 3), BitsGrid(bits=(2, 3, 4)), "quantized", "3 bits per weight on average"),
    ],
)
def test_each_unit_states_its_relation_and_target(
    unit: Unit, values: tuple[float, float], grid: Grid | None, relation: str, words: str
) -> None:
    card = card_of(plan_of(unit, values, grid))
    assert metadata(card)["base_model_relation"] == relation
    assert words in card
    asked = {Unit.DENSITY: "sparsity", Unit.WIDTH: "prune ratio", Unit.BITS: "bits per weight"}[unit]
    assert f"| {asked}, asked |" in card.partition("## Budget")[2].partition("##")[0]
    assert f"| {asked}, achieved (counted) |" in card


def test_quality_is_not_claimed_when_it_was_not_measured() -> None:
    card = card_of(plan_of(), evaluated=False)
    assert "Not measured in this run" in card
    assert "perplexity" not in card


def test_unknown_origin_is_left_out() -> None:
    plan = plan_of()
    content = metadata(model_card(result_of(plan), plan, stored=DENSE))
    assert not content.keys() & {"base_model", "base_model_relation", "license"}
    assert content["library_name"] == "transformers"


def loaded(source: str) -> LoadedModel:
    return LoadedModel(None, None, source=source, id=source, revision=None, dtype="float32")


def test_origin_of_a_folder_comes_from_its_own_card(tmp_path: Path) -> None:
    assert origin_of(loaded(str(tmp_path))) == Origin()
    (tmp_path / "README.md").write_text("---\nlicense: mit\nbase_model: a/b\n---\n# Hello\n")
    assert origin_of(loaded(str(tmp_path))) == Origin(base_model=None, license="mit"), (
        "a foreign card names its own parent"
    )
    (tmp_path / "result.json").touch()
    assert origin_of(loaded(str(tmp_path))) == Origin(base_model="a/b", license="mit")
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert origin_of(loaded(str(tmp_path))) == Origin()


def test_origin_of_the_embedded_model_is_known() -> None:
    assert origin_of(loaded("builtin")) == Origin(
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct", license="apache-2.0"
    )


def test_a_narrowed_model_says_what_is_smaller_and_how_it_loads() -> None:
    plan = plan_of(Unit.WIDTH)
    before = Footprint(
        n_params=1000,
        kv_cache_bytes_per_token=512,
        flops_per_token_blocks=800,
        flops_per_token_head=None,
        flops_per_token_attention=4096,
        context_len=2048,
    )
    after = before.model_copy(update={"n_params": 750, "kv_cache_bytes_per_token": 256})
    change = FootprintChange(before=before, after=after)
    result = result_of(plan).model_copy(update={"footprint": change})
    card = model_card(result, plan, stored=form_named("narrow").describe())
    assert "| parameters | 1,000 | 750 | 0.2500 |" in card
    assert "| key-value cache, bytes per token | 512 | 256 | 0.5000 |" in card
    assert "| operations per token, output layer | not known | not known | – |" in card
    assert "from_pretrained(folder, trust_remote_code=True)" in card
    assert "What is smaller" not in model_card(result_of(plan_of()), plan_of(), stored=DENSE)


def test_the_card_names_the_steps_before_this_one() -> None:
    plan = plan_of()
    earlier = result_of(plan_of(Unit.WIDTH)).as_earlier
    card = model_card(result_of(plan).model_copy(update={"earlier": earlier}), plan, stored=DENSE)
    assert "## Compressed before" in card
    assert f"| `{RECIPE.model}` | sparsegpt |" in card
    assert "Compressed before" not in model_card(result_of(plan), plan, stored=DENSE)


def test_names_of_strangers_break_neither_the_card_nor_a_terminal() -> None:
    plan, name = plan_of(), "a|b`c\x1b[31m\n# x"
    blocks = {"model.layers.0": name}
    renamed = tuple(
        one.model_copy(update={"block": blocks.get(one.block, one.block)}) for one in plan.budgets
    )
    card = card_of(plan.model_copy(update={"budgets": renamed}))
    assert r"| `` a\|b`c\x1b[31m\n# x `` |" in card
    assert "\x1b" not in card
    assert "\n# x" not in card


def test_a_budget_for_a_part_of_the_blocks_is_told_as_such() -> None:
    plan = plan_of()
    left_out = (LeftOut(name="mlp.experts.*.w", n_blocks=2, n_weights=1200),)
    result = result_of(plan).model_copy(update={"coverage": Coverage(n_weights=1600, left_out=left_out)})
    text = model_card(result, plan, stored=DENSE)
    assert (
        "40 % of the weights of its compressed linears removed, which hold 25 % of the weights in its" in text
    )
    assert "transformer blocks: 10 % of all of these are gone." in text
    assert "No budget reaches `mlp.experts.*.w (2 blocks)`, which stayed as they were." in text
    whole = result.model_copy(update={"coverage": Coverage(n_weights=400)})
    assert model_card(whole, plan, stored=DENSE) == model_card(result_of(plan), plan, stored=DENSE)


def test_bits_for_a_part_of_the_blocks_are_told_as_such() -> None:
    plan = plan_of(Unit.BITS, (4, 2), BitsGrid(bits=(2, 4)))
    coverage = Coverage(n_weights=800, left_out=(LeftOut(name="gate", n_blocks=2, n_weights=400),))
    text = model_card(result_of(plan).model_copy(update={"coverage": coverage}), plan, stored=DENSE)
    assert "over the compressed linears, which hold 50 % of the weights in its transformer blocks. " in text


def test_accuracy_stands_beside_perplexity_or_alone() -> None:
    plan = plan_of()
    dense, compressed = (
        TaskAccuracy(
            task="boolq",
            metric="acc",
            value=value,
            stderr=0.0112,
            samples=3270,
            shots=0,
            chance=0.5,
            version="2.0",
        )
        for value in (0.75, 0.625)
    )
    change = AccuracyChange(dense=by_task([dense]), compressed=by_task([compressed]))
    row = "| `boolq` | acc | 0.7500 ± 0.0112 | 0.6250 ± 0.0112 | 0.5000 | 3,270 | 0 |"
    for evaluated in (True, False):
        result = result_of(plan, evaluated=evaluated).model_copy(update={"tasks": change})
        card = model_card(result, plan, stored=DENSE)
        assert row in card
        assert ("perplexity" in card) is evaluated
        assert card.count("Nothing else was measured.") == 1
        assert "Not measured in this run" not in card


def test_budgets_from_damages_say_how_these_were_measured_and_what_came_of_them() -> None:
    plan = plan_of()
    text = CalibrationRecord(
        source="wiki`text`", token_ids_sha256="12" * 32, sequences=4, seq_len=128, sampling="random", seed=3,
        bos="first",
    )  # fmt: skip
    parts = tuple(
        PartDamage(
            name=f"model.layers.{i}", kind=PartKind.BLOCK, block=f"model.layers.{i}", n_weights=200,
            linears=tuple(name for name, block in LINEARS if block.endswith(str(i))), levels=(0.5, 1.0),
            damage=(0.25, 0.0),
        )
        for i in (0, 1)
    )  # fmt: skip
    profile = SensitivityProfile(
        model=result_of(plan).model, unit=plan.unit, backend=MethodRecord(name="wanda"), measure=Measure.KL,
        linears=tuple(
            ProfiledLinear(name=name, block=block, role="mlp.up", shape=(10, 10)) for name, block in LINEARS
        ),
        parts=parts, statistics=None, damage_text=text, forward_tokens=12345.6, versions={},
    )  # fmt: skip
    record = DamageRecord(
        measure="kl", predicted=0.5, damage=0.4, ratio=1.25, trial_damage=0.41, uniform_damage=None,
        carried_out="uniform", windows=text,
    )  # fmt: skip
    result = result_of(plan).model_copy(update={"sensitivity": record})
    card = model_card(result, plan, stored=DENSE, profile=profile)
    section = card[card.index("## Damage") : card.index("## Fallbacks")]
    for said in (
        "](damage.png)", "one block after the other (2 parts)", "**wanda**. Damage is KL(dense ‖ changed)",
        "4 windows of 128 tokens from `` wiki`text` `` (seed 3", "as much as 12,346 tokens forward",
        "| predicted: the sum over all parts (kl) | 0.5 |", "profile (KL) | 0.4 |", "is 1.25 of that",
        "Equal shares were carried out",
    ):  # fmt: skip
        assert said in section
    assert "equal shares (KL)" not in section  # nothing is said of what was not measured
    assert "## Damage" not in model_card(result_of(plan), plan, stored=DENSE)
