"""Every weight in the blocks is counted, and what gets no budget is named; a small part needs consent."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from owl_compress.allocators import Target, allocate
from owl_compress.backends.magnitude import Magnitude
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.cli.tables import plan_table, report_table, result_table
from owl_compress.compression.driver import compress_with_
from owl_compress.documents.coverage import Coverage, LeftOut, check_covered, percent
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.report import ImportanceReport
from owl_compress.errors import RequestError
from owl_compress.importance.estimator import measure, outline
from owl_compress.models.coverage import coverage_of
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.session import Session

MIXTURE = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 32,
    "num_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
EXPERTS = "mlp.experts.gate_up_proj (2 blocks), mlp.experts.down_proj (2 blocks), mlp.gate (2 blocks)"
ATTENTION, FUSED, GATE = 2 * 3072, 2 * 8 * 3 * 32 * 32, 2 * 8 * 32


@pytest.fixture
def mixture() -> Any:
    """A Qwen3 whose experts are fused into parameters of three axes."""
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **MIXTURE)).eval()


def test_a_dense_model_is_covered_whole(family_model: Any) -> None:
    coverage = coverage_of(find_structure(family_model))
    assert coverage.left_out == ()
    assert coverage.share == 1
    assert coverage.n_weights == sum(find_structure(family_model).linear_sizes.values())


def test_fused_experts_are_counted_and_named(mixture: Any) -> None:
    coverage = coverage_of(find_structure(mixture))
    assert coverage.n_weights == ATTENTION + FUSED + GATE
    assert coverage.n_left_out == FUSED + GATE
    assert coverage.named == EXPERTS


def test_less_than_half_is_refused_at_every_door_unless_it_is_what_is_wanted(
    mixture: Any, make_windows: Callable[..., Any], tokenizer: Any
) -> None:
    plan = allocate(outline(mixture), "uniform", Target.from_sparsity(0.5))
    recipe = Recipe(model="x", allocator="uniform", backend="magnitude", sparsity=0.5)
    loaded = LoadedModel(mixture, tokenizer, source="x", id="x", revision=None, dtype="float32")
    doors = (
        lambda partial: measure(mixture, make_windows(2), partial=partial),
        lambda partial: compress_with_(mixture, plan, Magnitude(), partial=partial),
        lambda partial: Session.open(recipe.model_copy(update={"partial": partial}), loaded),
    )
    for door in doors:
        with pytest.raises(RequestError, match=r"only 11\.0\d % of the weights .*experts.*--partial"):
            door(False)
        door(True)


def test_report_plan_result_and_their_tables_say_what_no_budget_reaches(
    mixture: Any, make_windows: Callable[..., Any]
) -> None:
    report = measure(mixture, make_windows(2), partial=True)
    plan = allocate(report, "owl", Target.from_sparsity(0.5, skips=("*.q_proj",)))
    result = compress_with_(mixture, plan, Magnitude(), partial=True)
    assert report.coverage == plan.coverage == result.coverage
    assert any(f"no budget reaches {EXPERTS}" in note for note in report_table(report).notes)
    for sheet in (plan_table(plan), result_table(result)):
        (note,) = (note for note in sheet.notes if "budgets cover" in note)
        assert note.endswith("skipped as asked: 3.67 %")
    assert not any("budgets cover" in note for note in plan_table(plan, result).notes)


def test_documents_keep_it_and_old_ones_do_without(mixture: Any) -> None:
    report = outline(mixture)
    plan = allocate(report, "uniform", Target.from_sparsity(0.5))
    for document in (report, plan):
        again = type(document).model_validate_json(document.to_json())
        assert again == document
        old = document.model_copy(update={"coverage": None})
        assert "coverage" not in old.to_json()  # the fingerprints of old files stay what they were
        assert type(document).model_validate_json(old.to_json()) == old
    assert isinstance(report, ImportanceReport)
    assert isinstance(plan, Plan)


def test_many_names_are_cut_short_the_largest_first() -> None:
    parts = tuple(LeftOut(name=f"part{i}", n_blocks=1, n_weights=i + 1) for i in range(8))
    assert Coverage(n_weights=100, left_out=parts).named == (
        "part7 (1 block), part6 (1 block), part5 (1 block), part4 (1 block), part3 (1 block), 3 more"
    )


def test_half_is_enough() -> None:
    check_covered(
        Coverage(n_weights=2, left_out=(LeftOut(name="x", n_blocks=1, n_weights=1),)), partial=False
    )


def test_a_share_is_never_rounded_up_to_all() -> None:
    assert [percent(share) for share in (1, 0.999999, 0.5, 0.123456, 0)] == [
        "100 %", "99.99 %", "50 %", "12.35 %", "0 %"
    ]  # fmt: skip
