"""The account of a compression: what the outcomes come to, and by what it can be done again."""

import json
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from time import perf_counter
from typing import Any

import pytest
import torch
import transformers

from owl_compress.allocators import Target, allocate
from owl_compress.backends import BACKENDS
from owl_compress.backends.magnitude import Magnitude
from owl_compress.compression.account import Account, Stored, method_record
from owl_compress.compression.driver import compress_with_
from owl_compress.compression.tasks import LinearOutcome
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.documents.result import Fallback, MethodRecord, Result
from owl_compress.documents.units import Unit
from owl_compress.importance.estimator import outline
from owl_compress.models.structure import find_structure

IDENTITY = ModelIdentity(id="owls/tiny", revision="abc", family="llama", dtype="float32")
STORED = Stored(bits_per_weight=31.5, bytes_on_disk=None, n_params_before=1000, n_params_after=900)
METHOD = MethodRecord(name="magnitude", parameters={"scope": "row"})
DAMPED = Fallback(what="damping raised", where="b.up", count=2)
DEAD = Fallback(what="dead inputs", where="a.up")


def plan_of(*values: float) -> Plan:
    """Three linears of 10, 70 and 20 weights, the later block first."""
    rows = (("b.up", "b", 10), ("a.up", "a", 70), ("a.down", "a", 20))
    return Plan(
        unit=Unit.DENSITY,
        target=1.0,
        low=0.0,
        high=1.0,
        allocator=AllocatorRecord(name="uniform"),
        report="cd" * 32,
        budgets=tuple(
            LinearBudget(name=name, block=block, n_weights=n, value=value)
            for (name, block, n), value in zip(rows, values, strict=True)
        ),
    )


PLAN = plan_of(0.5, 0.4, 0.3)
OUTCOMES = (
    LinearOutcome("b.up", achieved=0.5, relative_error=0.1, seconds=1.0, fallbacks=(DAMPED,)),
    LinearOutcome("a.up", achieved=0.25, relative_error=0.2, seconds=2.0, fallbacks=(DEAD,)),
    LinearOutcome("a.down", achieved=0.0, relative_error=0.3, seconds=3.0),
)


def account_of(calibration: TokenWindows | None = None, start: float | None = None) -> Account:
    start = perf_counter() if start is None else start
    return Account(PLAN, IDENTITY, ("a note",), calibration, torch.device("cpu"), start)


def result_of(account: Account, asked: Plan = PLAN) -> Result:
    return account.result(METHOD, "what it measures", asked, OUTCOMES, STORED)


def test_totals_are_means_over_the_weights() -> None:
    totals = result_of(account_of()).totals
    assert totals.achieved == pytest.approx((10 * 0.5 + 70 * 0.25 + 20 * 0.0) / 100, abs=1e-15)
    assert totals.asked == pytest.approx((10 * 0.5 + 70 * 0.4 + 20 * 0.3) / 100, abs=1e-15)
    assert totals.n_weights == 100


def test_totals_say_how_much_there_is_of_the_model() -> None:
    totals = result_of(account_of()).totals
    assert (totals.bits_per_weight, totals.bytes_on_disk) == (31.5, None)
    assert (totals.n_params_before, totals.n_params_after) == (1000, 900)


def test_rows_stand_in_the_order_of_the_plan_each_with_its_own_outcome() -> None:
    rows = result_of(account_of()).budgets
    assert [(row.name, row.block, row.n_weights) for row in rows] == [
        ("b.up", "b", 10),
        ("a.up", "a", 70),
        ("a.down", "a", 20),
    ]
    assert [row.asked for row in rows] == [0.5, 0.4, 0.3]
    assert [row.achieved for row in rows] == [0.5, 0.25, 0.0]
    assert [row.relative_error for row in rows] == [0.1, 0.2, 0.3]
    assert [row.seconds for row in rows] == [1.0, 2.0, 3.0]
    assert {row.unit for row in rows} == {Unit.DENSITY}


def test_rows_are_set_against_the_plan_that_was_restated_and_totals_against_the_first() -> None:
    result = result_of(account_of(), asked=plan_of(0.6, 0.3, 0.1))
    assert [row.asked for row in result.budgets] == [0.6, 0.3, 0.1]
    assert result.totals.asked == PLAN.achieved
    assert result.plan == PLAN.fingerprint


def test_an_outcome_too_few_is_no_account() -> None:
    with pytest.raises(ValueError, match="zip"):
        account_of().result(METHOD, "error", PLAN, OUTCOMES[:2], STORED)


def test_linears_that_keep_nothing_or_were_sparser_already_are_told() -> None:
    notes = result_of(account_of()).notes
    assert notes == (
        "a note",
        "sparser than asked: 2 linears, the first a.up, had more zeros already; a density of 0.39 was asked "
        "for, 0.225 is what is left",
        "linears that keep no weight at all: 1, the first a.down",
    )


def test_a_model_of_zeros_is_told_to_be_sparser_than_asked_and_one_without_is_not(tiny_llama: Any) -> None:
    plan = allocate(outline(tiny_llama), "uniform", Target.from_sparsity(0.3))
    sites = list(find_structure(tiny_llama).linears)
    for site in sites[:2]:
        site.weight[:, ::2] = 0
    notes = compress_with_(tiny_llama, plan, Magnitude()).notes
    assert notes[0].startswith(f"sparser than asked: 2 linears, the first {sites[0].name}, had more zeros")
    assert not any("no weight at all" in note for note in notes)


def test_seed_and_calibration_are_recorded(make_windows: Callable[..., TokenWindows]) -> None:
    windows = make_windows(seed=11)
    result = result_of(account_of(windows))
    assert result.calibration == windows.record
    assert result.seed == 11


def test_without_calibration_there_is_none_to_record() -> None:
    result = result_of(account_of())
    assert result.calibration is None
    assert result.seed == 0


def test_model_method_and_sources_are_named() -> None:
    result = result_of(account_of())
    assert result.model == IDENTITY
    assert result.backend == METHOD
    assert result.error_measure == "what it measures"
    assert (result.report, result.plan) == (PLAN.report, PLAN.fingerprint)
    assert result.versions["torch"] == torch.__version__
    assert result.versions["transformers"] == transformers.__version__


def test_notes_and_fallbacks_are_kept_in_order() -> None:
    result = result_of(account_of())
    assert [note.partition(":")[0] for note in result.notes] == [
        "a note",  # of the run, and then what the counts say
        "sparser than asked",
        "linears that keep no weight at all",
    ]
    assert result.fallbacks == (DAMPED, DEAD)


def test_time_counts_from_the_start_and_memory_of_the_host_alone() -> None:
    result = result_of(account_of(start=perf_counter() - 100))
    assert 100 <= result.wall_seconds < 200
    assert result.peak_host_bytes > 1_000_000
    assert result.peak_device_bytes == 0


@pytest.mark.parametrize("name", BACKENDS.builtin)
def test_a_method_record_holds_every_option_and_makes_the_same_backend_again(name: str) -> None:
    backend = BACKENDS.create(name)
    record = MethodRecord.model_validate_json(method_record(backend).model_dump_json())
    assert record.name == name
    assert record.parameters.keys() == {field.name for field in fields(backend)}
    assert BACKENDS.create(name, record.parameters) == backend


def test_a_method_record_holds_what_was_given_in_plain_words() -> None:
    record = method_record(
        BACKENDS.create("gptq", {"group_size": "none", "asymmetric": True, "damping": 0.5})
    )
    assert record.parameters["group_size"] is None
    assert record.parameters["symmetric"] is False
    assert record.parameters["damping"] == 0.5
    scope = method_record(BACKENDS.create("wanda", {"scope": "linear"})).model_dump(mode="json")
    assert json.loads(json.dumps(scope)) == {"name": "wanda", "parameters": {"scope": "linear"}}


def test_a_real_compression_is_counted_from_its_tensors_whatever_the_order_of_the_plan(
    tiny_llama: Any,
) -> None:
    plan = allocate(outline(tiny_llama), "random", Target.from_sparsity(0.5), {"seed": 1})
    plan = Plan.model_validate(plan.model_dump() | {"budgets": plan.model_dump()["budgets"][::-1]})
    result = compress_with_(tiny_llama, plan, Magnitude(), None)
    kept = {site.name: int((site.weight != 0).sum()) for site in find_structure(tiny_llama).linears}
    assert [row.name for row in result.budgets] == [budget.name for budget in plan.budgets]
    assert [row.achieved for row in result.budgets] == [
        kept[budget.name] / budget.n_weights for budget in plan.budgets
    ]
    n_weights = sum(budget.n_weights for budget in plan.budgets)
    assert result.totals.achieved == pytest.approx(float(Fraction(sum(kept.values()), n_weights)), abs=1e-15)
    assert result.totals.n_weights == n_weights
    assert result.totals.n_params_before == sum(p.numel() for p in tiny_llama.parameters())
