"""The chart: drawn for every kind of plan, whole or not at all, leaving matplotlib's global state alone."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.provenance import ModelIdentity, Provenance
from owl_compress.documents.report import BlockReport, ImportanceReport, LinearReport
from owl_compress.documents.result import LinearResult, MethodRecord, Result, Totals
from owl_compress.documents.units import BitsGrid, Grid, KeptOfGrid, Unit
from owl_compress.errors import RequestError
from owl_compress.pages.chart import Budgets, all_asked, budget_chart, draw


def report_of(n_blocks: int) -> ImportanceReport:
    return ImportanceReport(
        model=ModelIdentity(id="a/model", revision=None, family="llama", dtype="float32"),
        blocks=tuple(
            BlockReport(
                name=f"layers.{i}", n_weights=8, metrics={"lod@5": 0.01 + 0.001 * i, "weight_l1": 2.0},
                linears=tuple(
                    LinearReport(name=f"layers.{i}.{j}", role="x", shape=(2, 2), n_weights=4, metrics={})
                    for j in range(2)
                ),
            )
            for i in range(n_blocks)
        ),
        provenance=Provenance(calibration=None, versions={}),
    )  # fmt: skip


def plan_of(
    values: list[float], unit: Unit = Unit.DENSITY, grid: Grid | None = None, spread: float = 0.0
) -> Plan:
    return Plan(
        unit=unit, target=sum(values) / len(values), grid=grid, low=0,
        high=16 if unit is Unit.BITS else 1, report="x",
        allocator=AllocatorRecord(name="owl"),
        budgets=tuple(
            LinearBudget(
                name=f"layers.{i}.{j}", block=f"layers.{i}", n_weights=4, value=value + spread * sign
            )
            for i, value in enumerate(values)
            for j, sign in enumerate((1, -1))
        ),
    )  # fmt: skip


def test_a_title_says_every_target_and_of_many_their_number() -> None:
    def told(*keeps: float) -> str:
        return all_asked([Budgets.of(plan_of([keep, keep])) for keep in keeps])

    assert told(0.25) == told(0.25, 0.25) == "sparsity 0.75"
    assert told(0.25, 0.5, 0.25) == "sparsity 0.75, sparsity 0.5"
    assert told(0.25, 0.5, 0.75, 0.875) == "4 targets"


def size_of(png: Path) -> tuple[int, int]:
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.mark.parametrize(
    ("plan", "metric"),
    [
        (plan_of([0.3, 0.4, 0.5]), "lod@5"),
        (plan_of([0.3, 0.4, 0.5], spread=0.05), "weight_l1"),
        (plan_of([0.4] * 3), "lod@5"),
        (plan_of([0.0] * 3), "lod@5"),
        (plan_of([0.4]), "lod@5"),
        (plan_of([0.375, 0.5, 0.25], grid=KeptOfGrid(kept_of=8)), "lod@5"),
        (plan_of([2, 3, 4], Unit.BITS, BitsGrid(bits=(2, 3, 4))), "lod@5"),
        (plan_of([0.8, 0.9, 0.7], Unit.WIDTH), "lod@5"),
    ],
)
def test_every_kind_of_plan_is_drawn(plan: Plan, metric: str, tmp_path: Path) -> None:
    budget_chart(report_of(3), plan, tmp_path / "chart.png", metric)
    width, height = size_of(tmp_path / "chart.png")
    assert width > 900
    assert height > 700
    assert [file.name for file in tmp_path.iterdir()] == ["chart.png"]


def test_a_block_left_alone_is_a_gap(tmp_path: Path) -> None:
    budget_chart(report_of(5), plan_of([0.3, 0.5]), tmp_path / "chart.png", "lod@5")
    assert size_of(tmp_path / "chart.png")


def test_plans_are_compared_even_under_one_name(tmp_path: Path) -> None:
    others = {"uniform": plan_of([0.4] * 3), "owl": plan_of([0.35, 0.4, 0.45])}
    budget_chart(report_of(3), plan_of([0.3, 0.4, 0.5]), tmp_path / "all.png", "lod@5", others=others)
    budget_chart(report_of(3), plan_of([0.3, 0.4, 0.5]), tmp_path / "one.png", "lod@5")
    assert (tmp_path / "all.png").read_bytes() != (tmp_path / "one.png").read_bytes()


def test_the_same_chart_has_the_same_bytes_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    path.write_text("old")
    budget_chart(report_of(3), plan_of([0.3, 0.4, 0.5]), path, "lod@5")
    first = path.read_bytes()
    budget_chart(report_of(3), plan_of([0.3, 0.4, 0.5]), path, "lod@5")
    assert path.read_bytes() == first


def test_matplotlib_keeps_its_global_state(tmp_path: Path) -> None:
    def settings() -> dict[str, object]:
        # Merely looking at the entry "backend" would choose one.
        return {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}

    before = settings()
    budget_chart(report_of(3), plan_of([0.3, 0.4, 0.5]), tmp_path / "chart.png", "lod@5")
    assert settings() == before
    code = "import sys, owl_compress.pages.chart; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=dict(os.environ))


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    report, plan, path = report_of(3), plan_of([0.3, 0.4, 0.5]), tmp_path / "chart.png"
    with pytest.raises(RequestError, match=r"no metric 'lod@6': did you mean 'lod@5'\?"):
        budget_chart(report, plan, path, "lod@6")
    with pytest.raises(RequestError, match=r"'layers\.3', which the report does not have"):
        budget_chart(report, plan_of([0.3] * 4), path, "lod@5")
    with pytest.raises(RequestError, match="density and bits do not fit"):
        budget_chart(report, plan, path, "lod@5", others={"b": plan_of([2, 3, 4], Unit.BITS)})
    with pytest.raises(RequestError, match="cannot write"):
        budget_chart(report, plan, tmp_path / "none" / "chart.png", "lod@5")
    assert list(tmp_path.iterdir()) == []


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """A dollar sign starts no formula, and what a terminal would obey is spelled out."""
    plan = plan_of([0.5, 0.6, 0.7])
    named = plan.model_copy(
        update={"allocator": plan.allocator.model_copy(update={"name": r"a$\frac$b" + "\ud800\x1b"})}
    )
    budget_chart(report_of(3), named, tmp_path / "x.png", "lod@5", others={"$$": plan})
    assert size_of(tmp_path / "x.png")[0] > 0


def result_of(plan: Plan) -> Result:
    budgets = tuple(
        LinearResult(
            name=one.name, block=one.block, unit=plan.unit, asked=one.value, achieved=one.value / 2,
            n_weights=one.n_weights, relative_error=0.1, seconds=0.0,
        )
        for one in plan.budgets
    )  # fmt: skip
    totals = Totals(
        asked=plan.target, achieved=plan.target / 2, n_weights=8, bits_per_weight=32.0, bytes_on_disk=None,
        n_params_before=9, n_params_after=9,
    )  # fmt: skip
    return Result(
        model=report_of(1).model, backend=MethodRecord(name="some"), error_measure="-", totals=totals,
        calibration=None, seed=0, wall_seconds=1, peak_device_bytes=0, peak_host_bytes=0, versions={},
        report="-", plan="-", budgets=budgets,
    )  # fmt: skip


@pytest.mark.parametrize("n_blocks", [2, 100])
def test_a_report_alone_and_a_plan_alone_are_drawn(n_blocks: int, tmp_path: Path) -> None:
    plan = plan_of([0.2 + 0.5 * i / n_blocks for i in range(n_blocks)], spread=0.1)
    draw(tmp_path / "report.png", report_of(n_blocks), [], "lod@5")
    draw(tmp_path / "plan.png", None, [Budgets.of(plan)], "lod@5")
    draw(tmp_path / "both.png", report_of(n_blocks), [Budgets.of(plan)], "lod@5")
    heights = {name: size_of(tmp_path / f"{name}.png")[1] for name in ("report", "plan", "both")}
    assert heights["report"] == heights["plan"] < heights["both"]


def test_a_result_is_what_was_counted() -> None:
    plan = plan_of([0.3, 0.5], Unit.WIDTH)
    counted = Budgets.of(result_of(plan))
    assert (counted.asked, counted.target) == ("prune ratio 0.6", 0.4)
    assert [one.value for one in counted.members] == [one.value / 2 for one in plan.budgets]
    assert Budgets.of(plan).asked == "prune ratio 0.6"


def test_nothing_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing to draw"):
        draw(tmp_path / "chart.png", None, [], "lod@5")
    two, three = Budgets.of(plan_of([0.3, 0.5])), Budgets.of(plan_of([0.3] * 3))
    with pytest.raises(RequestError, match=r"'layers\.2', which 'owl' does not have"):
        draw(tmp_path / "chart.png", None, [two, three], "lod@5")
