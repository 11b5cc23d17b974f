"""What tables say: short names, what was asked for, what was got and why, and nothing that says nothing."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from owl_compress.cli import console
from owl_compress.cli.console import Output
from owl_compress.cli.damage_tables import sensitivity_table
from owl_compress.cli.evaluation_tables import latency_table, perplexity_table
from owl_compress.cli.sheet import Sheet
from owl_compress.cli.tables import (
    plan_table,
    prediction_table,
    report_table,
    result_table,
    verification_table,
)
from owl_compress.documents.measurements import (
    LatencyRecord,
    LatencyShape,
    PartLatency,
    PerplexityRecord,
    Prediction,
    Verification,
    Violation,
)
from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.provenance import CalibrationRecord, ModelIdentity, Provenance
from owl_compress.documents.report import BlockReport, ImportanceReport, LinearReport
from owl_compress.documents.result import LinearResult, MethodRecord, Result, Totals
from owl_compress.documents.sensitivity import (
    Measure,
    PartDamage,
    PartKind,
    ProfiledLinear,
    SensitivityProfile,
)
from owl_compress.documents.units import BitsGrid, Grid, KeptOfGrid, Unit
from owl_compress.pages.words import size_in_words

METRICS = ("lod@3", "lod@5", "lod@7", "lod@10", "score_mean", "score_median", "weight_l1", "weight_l2")
MODEL = ModelIdentity(id="owner/model", revision=None, family="llama", dtype="float32")


def report_of(n_blocks: int, n_weights: tuple[int, ...] = (4,)) -> ImportanceReport:
    def block(number: int) -> BlockReport:
        size = n_weights[number % len(n_weights)]
        linear = LinearReport(
            name=f"model.layers.{number}.x", role="x", shape=(1, size), n_weights=size, metrics={}
        )
        return BlockReport(
            name=f"model.layers.{number}", n_weights=size, linears=(linear,),
            metrics={name: 10.0 ** (place - 4) / 3 for place, name in enumerate(METRICS)},
        )  # fmt: skip

    return ImportanceReport(
        model=MODEL,
        blocks=tuple(map(block, range(n_blocks))),
        provenance=Provenance(calibration=None, versions={}),
    )


def plan_of(unit: Unit, values: list[float], grid: Grid | None = None) -> Plan:
    return Plan(
        unit=unit, target=sum(values) / len(values), grid=grid, low=0,
        high=16 if unit is Unit.BITS else 1, report="x", allocator=AllocatorRecord(name="owl"),
        budgets=tuple(
            LinearBudget(name=f"model.layers.{i}.x", block=f"model.layers.{i}", n_weights=1000, value=value)
            for i, value in enumerate(values)
        ),
    )  # fmt: skip


def result_of(plan: Plan, achieved: float, **parameters: Any) -> Result:
    return Result(
        model=MODEL,
        backend=MethodRecord(name="some", parameters=parameters),
        error_measure="-",
        totals=Totals(
            asked=plan.achieved, achieved=achieved, n_weights=3000, bits_per_weight=32.0, bytes_on_disk=4096,
            n_params_before=5000, n_params_after=5000,
        ),
        calibration=None, seed=0, wall_seconds=1.0, peak_device_bytes=0, peak_host_bytes=2**20, versions={},
        report="-", plan="-",
        budgets=tuple(
            LinearResult(
                name=one.name, block=one.block, unit=plan.unit, asked=one.value, achieved=achieved,
                n_weights=one.n_weights, relative_error=0.25, seconds=0.0,
            )
            for one in plan.budgets
        ),
    )  # fmt: skip


def text_of(sheet: Sheet) -> str:
    return "\n".join([*sheet.head(), *sheet.body()])


def cells(sheet: Sheet, heading: str) -> tuple[str, ...]:
    return next(column.cells for column in sheet.columns if column.heading == heading)


@pytest.mark.parametrize("n_blocks", [3, 100])
def test_a_report_fits_eighty_columns_and_says_whole_names(n_blocks: int) -> None:
    sheet = report_table(report_of(n_blocks))
    shown = sheet.fitting(80)
    assert shown.width <= 80
    assert {"block", "lod@3", "lod@5"} <= {column.heading for column in shown.columns}
    assert cells(shown, "block") == tuple(map(str, range(n_blocks)))
    assert f"block {n_blocks - 1} is model.layers.{n_blocks - 1}" in shown.notes
    assert all(heading in sheet.head()[1] for heading in METRICS)


def bits_profile(damages: tuple[tuple[float, ...], ...]) -> SensitivityProfile:
    """One part in each block, at 2 and more bits."""

    def part(number: int, damage: tuple[float, ...]) -> PartDamage:
        name, block = f"model.layers.{number}.x", f"model.layers.{number}"
        levels = tuple(2.0 + place for place in range(len(damage)))
        return PartDamage(
            name=name, kind=PartKind.TIED, block=block, linears=(name,), n_weights=4, levels=levels,
            damage=damage,
        )  # fmt: skip

    parts = tuple(part(number, damage) for number, damage in enumerate(damages))
    text = CalibrationRecord(
        source="text.txt", token_ids_sha256="0", sequences=1, seq_len=8, sampling="first", seed=0, bos="never"
    )
    return SensitivityProfile(
        model=MODEL, unit=Unit.BITS, backend=MethodRecord(name="rtn"), measure=Measure.KL, statistics=None,
        linears=tuple(
            ProfiledLinear(name=one.name, block=one.block, role="x", shape=(1, 4)) for one in parts
        ),
        parts=parts, damage_text=text, forward_tokens=0, versions={},
    )  # fmt: skip


def test_damages_of_other_orders_of_magnitude_do_not_look_like_none() -> None:
    shown = sensitivity_table(bits_profile(((0.25, 0.01, 0.0), (0.002, 0.003, 1.5e-8))))
    cells = {column.heading: column.cells for column in shown.columns}
    assert cells["2"] == ("0.2500", "0.0020")
    assert cells["3"] == ("0.01000", "0.00300")
    assert cells["4"] == ("0.000e+00", "1.500e-08")
    shown = sensitivity_table(bits_profile(((1.25,), (2e-6,), (0.0,))))
    assert shown.columns[-1].cells == ("1.25e+00", "2.00e-06", "0.00e+00")
    assert shown.title == "Damage (kl) of owner/model by rtn, tied group by tied group"


def test_sizes_of_blocks_are_a_column_only_where_they_differ() -> None:
    assert "4 weights in each block" in report_table(report_of(3)).notes
    assert cells(report_table(report_of(3, (4, 2000))), "weights") == ("4", "2,000", "4")


@pytest.mark.parametrize(
    ("plan", "title", "heading", "first"),
    [
        (plan_of(Unit.DENSITY, [0.2, 0.4]), "sparsity 0.7 on average", "sparsity", "0.8000"),
        (plan_of(Unit.DENSITY, [0.25, 0.5], KeptOfGrid(kept_of=4)), "1.5:4 kept", "N of 4", "1"),
        (plan_of(Unit.WIDTH, [0.9, 0.7]), "prune ratio 0.2 on average", "prune ratio", "0.1000"),
        (plan_of(Unit.BITS, [2, 4], BitsGrid(bits=(2, 4))), "3 bits per weight", "bits per weight", "2.00"),
    ],
)
def test_a_plan_is_told_as_it_was_asked_for(plan: Plan, title: str, heading: str, first: str) -> None:
    sheet = plan_table(plan)
    assert title in sheet.title
    assert cells(sheet, heading)[0] == first
    assert cells(sheet, "block") == ("0", "1", "all")
    assert sheet.width <= 80


def test_a_plan_within_a_time_says_what_is_predicted() -> None:
    told = {"phase": "decode", "predicted_seconds": 0.012346, "predicted_speedup": 1.3051}
    plain = plan_of(Unit.WIDTH, [0.9, 0.7])
    plan = plain.model_copy(update={"allocator": AllocatorRecord(name="owl", parameters=told)})
    line = "decode predicted by the cost table: 12.35 ms, 1.31 times as fast as dense"
    assert line in plan_table(plan).notes
    assert not any("predicted" in note for note in plan_table(plain).notes)


def test_what_was_got_stands_beside_what_was_asked() -> None:
    plan = plan_of(Unit.WIDTH, [0.9, 0.7])
    sheet = plan_table(plan, result_of(plan, 0.75))
    assert cells(sheet, "achieved") == ("0.2500", "0.2500", "0.2500")
    assert cells(sheet, "error") == ("0.2500",) * 3
    assert sheet.width <= 80


def test_a_narrowed_model_says_why_it_is_off_its_budget() -> None:
    plan = plan_of(Unit.WIDTH, [0.2, 0.2])
    shown = text_of(result_table(result_of(plan, 0.222, round_to=64)))
    assert "asked 0.8000, got 0.7780: heads go whole, channels in multiples of 64 (--round-to)" in shown
    assert "heads go whole" not in text_of(result_table(result_of(plan, 0.2, round_to=64)))
    prediction = Prediction(checkpoint_bytes=1, n_weights_kept=444, working_bytes=1, activation_bytes=1)
    assert "asked 0.8000, got 0.7780: heads go whole" in text_of(prediction_table(prediction, plan))


def test_what_says_nothing_is_left_out() -> None:
    plan = plan_of(Unit.BITS, [3, 3])
    result = text_of(result_table(result_of(plan, 3.0, group_size=None, mse=False)))
    assert not any(word in result for word in ("device", "fallbacks", "before", "group-size", "False"))
    prediction = Prediction(checkpoint_bytes=100, n_weights_kept=2000, working_bytes=9, activation_bytes=0)
    shown = text_of(prediction_table(prediction, plan))
    assert "100 bytes" in shown
    assert not any(word in shown for word in ("weights kept", "activations"))
    pruned = plan_of(Unit.DENSITY, [0.5, 0.5])
    assert "weights kept in the linears      2,000 of 2,000" in text_of(prediction_table(prediction, pruned))


def latency_of(name: str, threads: int | None, device_bytes: int) -> LatencyRecord:
    return LatencyRecord(
        name=name, kernel="dense", device="cpu", threads=threads, dtype="float32", shape=LatencyShape(),
        runs=7, n_params=5000, prefill_seconds=0.1, decode_seconds_per_token=0.1,
        prefill_tokens_per_second=10, decode_tokens_per_second=10,
        blocks=PartLatency(prefill_seconds=0.05, decode_seconds_per_token=0.05), head=None,
        weight_bytes=20_000, peak_device_bytes=device_bytes, peak_host_bytes=2**30,
    )  # fmt: skip


def test_latency_of_a_cpu_says_nothing_of_a_device_that_is_not_there() -> None:
    shown = text_of(latency_table([latency_of("/a/long/path/model", 1, 0)]))
    assert "Latency on cpu, 1 thread, float32" in shown
    assert not any(word in shown for word in ("device", "head", "/a/long/path"))
    assert "2 threads" in text_of(latency_table([latency_of("x", 2, 0)]))
    assert "peak device memory" in text_of(latency_table([latency_of("x", None, 5)]))


def test_models_of_one_name_are_told_apart() -> None:
    sheet = latency_table([latency_of("a/model", 1, 0), latency_of("b/model", 1, 0)])
    assert [column.heading for column in sheet.columns] == ["what", "a/model", "b/model"]


def test_an_evaluation_is_written_for_people() -> None:
    record = PerplexityRecord(
        perplexity=12.3456789, tokens=10220, windows=20, seq_len=512, dtype="float32", data="text.txt",
        bos="first", n_params=134515008,
    )  # fmt: skip
    shown = text_of(perplexity_table(record))
    assert all(words in shown for words in ("12.346", "20 of 512 tokens", "10,220", "134,515,008"))


def test_violations_name_whole_linears() -> None:
    name = "model.layers.11.self_attn.q_proj"
    one = Violation(linear=name, groups=9, violating=2, row=0, first_input=4, kept=3, allowed=2)
    found = Verification(pattern="2:4", linears=1, groups=9, violations=(one,))
    assert name in text_of(verification_table(found).fitting(60))
    fine = Verification(pattern="2:4", linears=1, groups=9, violations=())
    assert "every group keeps no more than it may" in text_of(verification_table(fine))


@pytest.mark.parametrize(
    ("n_bytes", "shown"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1024, "1.0 KiB"), (5 * 2**40, "5,120.0 GiB")],
)
def test_sizes_are_in_the_largest_unit(n_bytes: int, shown: str) -> None:
    assert size_in_words(n_bytes) == shown


def test_a_terminal_gets_what_fits_and_a_pipe_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = report_table(report_of(3))
    Output().show(table)
    assert capsys.readouterr().out.splitlines() == [*text_of(table).splitlines(), ""]
    made = lambda **options: Console(file=sys.stdout, force_terminal=True, width=60, **options)  # noqa: E731
    monkeypatch.setattr(console, "_Console", made)
    Output().show(table)
    shown = capsys.readouterr().out
    assert "no room for" in shown
    assert "weight_l2 " not in shown


@pytest.mark.parametrize("columns", ["20", "300"])
def test_the_lines_of_a_pipe_do_not_depend_on_the_terminal(
    done: Callable[..., Any], report: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    expected = done("allocate", report, "--sparsity", "0.5", "--dry-run").out
    monkeypatch.setenv("COLUMNS", columns)
    assert done("allocate", report, "--sparsity", "0.5", "--dry-run").out == expected
    assert [line.split()[0] for line in expected.splitlines()[3:6]] == ["0", "1", "2"]
