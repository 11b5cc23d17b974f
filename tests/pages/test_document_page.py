"""The page of one compression: what stands in it, and how it looks in a browser."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.accuracy import AccuracyChange, TaskAccuracy
from owl_compress.documents.findings import Findings, Found
from owl_compress.documents.measurements import DamageRecord, Evaluation, PerplexityRecord
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
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.pages.document_page import document_page

MODEL = ModelIdentity(id="a/tiny-model", revision=None, family="llama", dtype="float32")
ROLES = ("attn.q", "attn.o", "mlp.up", "mlp.down")
TEXT = CalibrationRecord(
    source="text.txt", token_ids_sha256="ab" * 32, sequences=4, seq_len=32, sampling="random", seed=0,
    bos="first",
)  # fmt: skip
VERSIONS = {"owl-compress": "0.1.0", "python": "3.11"}


def names(n_blocks: int, roles: tuple[str, ...] = ROLES) -> list[tuple[str, str, str]]:
    return [
        (f"model.layers.{i}", role, f"model.layers.{i}.{role}_proj")
        for i in range(n_blocks)
        for role in roles
    ]


def report_of(n_blocks: int, roles: tuple[str, ...] = ROLES) -> ImportanceReport:
    linears = [
        LinearReport(
            name=name, role=role, shape=(4, 4), n_weights=16,
            metrics={"lod@5": 0.001 * (1 + place % 7), "score_mean": 1.0},
        )
        for place, (_, role, name) in enumerate(names(n_blocks, roles))
    ]  # fmt: skip
    blocks = tuple(
        BlockReport(
            name=f"model.layers.{i}", n_weights=16 * len(roles),
            metrics={"lod@5": 0.01 + 0.001 * i, "score_mean": 2.0},
            linears=tuple(linears[i * len(roles) : (i + 1) * len(roles)]),
        )
        for i in range(n_blocks)
    )  # fmt: skip
    return ImportanceReport(
        model=MODEL, blocks=blocks, provenance=Provenance(calibration=TEXT, versions=VERSIONS)
    )


def plan_of(n_blocks: int, spread: float = 0.0, roles: tuple[str, ...] = ROLES, name: str = "owl") -> Plan:
    values = [
        0.4 + 0.1 * (i / max(1, n_blocks - 1) - 0.5) + spread * (-1) ** place
        for i in range(n_blocks)
        for place in range(len(roles))
    ]
    return Plan(
        unit=Unit.DENSITY, target=max(values), low=0, high=1, report="x",
        allocator=AllocatorRecord(name=name, parameters={"metric": "lod@5", "lam": 0.08}),
        budgets=tuple(
            LinearBudget(name=linear, block=block, n_weights=16, value=value)
            for (block, _, linear), value in zip(names(n_blocks, roles), values, strict=True)
        ),
    )  # fmt: skip


def result_of(plan: Plan, *, is_evaluated: bool = True, **changes: Any) -> Result:
    def record(value: float) -> PerplexityRecord:
        return PerplexityRecord(
            perplexity=value, tokens=128, windows=4, seq_len=32, dtype="float32", data="here/text.txt",
            bos="first", n_params=1000,
        )  # fmt: skip

    evaluation = Evaluation(dense=record(20.0), compressed=record(61.284))
    content: dict[str, Any] = {
        "model": MODEL, "backend": MethodRecord(name="wanda", parameters={"scope": "row"}),
        "error_measure": "squared output error over squared output",
        "totals": Totals(
            asked=plan.target, achieved=plan.achieved, n_weights=16 * len(plan.budgets), bits_per_weight=32.0,
            bytes_on_disk=4096, n_params_before=1000, n_params_after=1000,
        ),
        "evaluation": evaluation if is_evaluated else None,
        "calibration": TEXT, "seed": 0, "wall_seconds": 3.25, "peak_device_bytes": 0,
        "peak_host_bytes": 2**30, "versions": VERSIONS, "report": "x", "plan": plan.fingerprint,
        "budgets": tuple(
            LinearResult(
                name=one.name, block=one.block, unit=Unit.DENSITY, asked=one.value, achieved=one.value,
                n_weights=16, relative_error=0.01 * (1 + place % 5), seconds=0.1,
            )
            for place, one in enumerate(plan.budgets)
        ),
    }  # fmt: skip
    return Result(**content | changes)


def profile_of(n_blocks: int, roles: tuple[str, ...] = ROLES) -> SensitivityProfile:
    return SensitivityProfile(
        model=MODEL, unit=Unit.DENSITY, backend=MethodRecord(name="wanda"), measure=Measure.KL,
        linears=tuple(
            ProfiledLinear(name=name, block=block, role=role, shape=(4, 4))
            for block, role, name in names(n_blocks, roles)
        ),
        parts=tuple(
            PartDamage(
                name=name, kind=PartKind.LINEAR, block=block, linears=(name,), n_weights=16,
                levels=(0.2, 0.4, 0.6, 0.8, 1.0), damage=(1.0 + place, 0.4, 0.1, 0.02, 0.0),
            )
            for place, (block, _, name) in enumerate(names(n_blocks, roles))
        ),
        statistics=TEXT, damage_text=TEXT, forward_tokens=1000, versions=VERSIONS,
    )  # fmt: skip


def findings_of(**content: Any) -> Findings:
    empty: dict[str, Any] = {
        "report": None,
        "profile": None,
        "plans": {},
        "results": {},
        "tuning": None,
        "recipe": None,
    }
    found = empty | content
    documents = [found["report"], found["profile"], *found["plans"].values(), *found["results"].values()]
    files = tuple(Found(Path(f"{place}.json"), one) for place, one in enumerate(documents) if one)
    return Findings(**found, files=files)


def everything(n_blocks: int = 3, roles: tuple[str, ...] = ROLES) -> Findings:
    plan = plan_of(n_blocks, spread=0.02, roles=roles)
    return findings_of(
        report=report_of(n_blocks, roles), profile=profile_of(n_blocks, roles), plans={"owl": plan},
        results={"owl": result_of(plan)}, recipe="model: a/tiny-model\nsparsity: 0.6",
    )  # fmt: skip


PLAN = plan_of(3)
KINDS = {
    "report": findings_of(report=report_of(3)),
    "plan": findings_of(plans={"owl": PLAN}),
    "plans": findings_of(plans={"owl": PLAN, "other": plan_of(3, 0.1)}),
    "profile": findings_of(profile=profile_of(3)),
    "result": findings_of(results={"wanda": result_of(PLAN, is_evaluated=False)}),
    "folder": everything(),
    "two results": findings_of(
        report=report_of(3), plans={"owl": PLAN, "uniform": plan_of(3, 0.01)},
        results={"owl": result_of(PLAN), "uniform": result_of(plan_of(3, 0.01))},
    ),
    "one block": findings_of(report=report_of(1), plans={"owl": plan_of(1)}),
}  # fmt: skip


@cache
def page_of(kind: str) -> str:
    return document_page(KINDS[kind])


def headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_a_page_says_in_a_sentence_what_came_of_it_and_how_it_was_made() -> None:
    html = page_of("folder")
    assert "<title>tiny-model at sparsity " in html
    assert "perplexity on text.txt went from 20.00 to 61.28" in html
    assert headings(html) == [
        "Importance and budgets", "Linear by linear", "Damage", "What compression changed",
        "Quality, sizes and times", "Tables", "How it was made",
    ]  # fmt: skip
    for told in (
        "sparsity: 0.6",
        "lam = 0.08",
        "ab" * 32,
        "owl-compress 0.1.0",
        KINDS["folder"].files[0].document.fingerprint,
    ):
        assert told in html


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_finding_has_a_page_with_pictures(kind: str) -> None:
    html = page_of(kind)
    assert html.count("<svg") >= 2
    assert headings(html)[-1] == "How it was made"
    assert "nan" not in re.sub(r"<[^>]*>", "", html).lower()


def test_names_of_strangers_end_nothing() -> None:
    name = "</svg></title><script>alert(1)</script>$x^2$\u202e"
    model = MODEL.model_copy(update={"id": name})
    plan = plan_of(2, roles=("attn.q", name), spread=0.01, name=name)
    report = report_of(2, roles=("attn.q", name)).model_copy(update={"model": model})
    html = document_page(findings_of(report=report, plans={name: plan}, recipe=name))
    assert html.count("<script>") == html.count("</script>") == 1
    assert html.count("</svg>") == html.count("<svg")
    assert "\u202e" not in html


def test_a_block_that_a_plan_leaves_alone_is_a_gap_and_a_dash() -> None:
    html = document_page(findings_of(report=report_of(4), plans={"owl": plan_of(3)}))
    assert '<td class="n">–</td>' in html


def test_what_was_predicted_and_what_it_came_to_stand_beside_the_curves() -> None:
    record = DamageRecord(
        measure="kl", predicted=1.5, damage=1.25, ratio=1.2, trial_damage=None, uniform_damage=None,
        carried_out="plan", windows=TEXT,
    )  # fmt: skip
    plan = plan_of(3)
    findings = findings_of(results={"owl": result_of(plan, sensitivity=record)})
    assert "<dt>predicted: the sum over all parts (kl)</dt><dd>1.5</dd>" in document_page(findings)


def test_accuracy_and_bits_per_byte_stand_beside_perplexity() -> None:
    def task(value: float) -> TaskAccuracy:
        return TaskAccuracy(
            task="boolq",
            metric="acc",
            value=value,
            stderr=0.0125,
            samples=1500,
            shots=0,
            chance=0.5,
            version="1",
        )

    result = result_of(PLAN)
    assert result.evaluation is not None
    after = result.evaluation.compressed.model_copy(update={"bits_per_byte": 1.25})
    before = result.evaluation.dense.model_copy(update={"bits_per_byte": 0.875})
    measured = result.evaluation.model_copy(update={"dense": before, "compressed": after})
    tasks = AccuracyChange(dense={"boolq": task(0.7)}, compressed={"boolq": task(0.65)})
    changed = result.model_copy(update={"evaluation": measured, "tasks": tasks})
    html = document_page(findings_of(results={"wanda": changed}))
    assert "<dt>bits per byte after</dt><dd>1.2500</dd>" in html
    row = re.search(r"<td>boolq</td>.*", html)
    assert row is not None
    cells = re.findall(r">([^<>]+)</td>", row[0])
    assert cells == ["boolq", "acc", "1,500", "0.7000", "0.0125", "0.6500", "0.0125", "-0.0500", "0.5000"]


def test_budgets_in_two_units_are_refused() -> None:
    bits = Plan(
        unit=Unit.BITS, target=3, low=2, high=4, allocator=AllocatorRecord(name="uniform"),
        budgets=tuple(
            LinearBudget(name=name, block=block, n_weights=16, value=3) for block, _, name in names(3)
        ),
    )  # fmt: skip
    with pytest.raises(RequestError, match="budgets in bits and density do not fit on one page"):
        document_page(findings_of(plans={"owl": plan_of(3), "uniform": bits}))


@pytest.mark.slow
def test_a_large_model_has_a_light_page() -> None:
    roles = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
    assert len(document_page(everything(80, roles))) < 2 * 2**20


DRAWN = """
[...document.querySelectorAll("svg")].map(one => {
  const box = one.getBoundingClientRect(), inner = one.getBBox();
  return [box.width, box.height, inner.width, inner.height, one.querySelectorAll("path").length,
          getComputedStyle(one.parentElement).display];
})
"""


@pytest.mark.parametrize("kind", ["folder", "two results"])
@pytest.mark.parametrize(("width", "shown"), [(1200, "wide"), (500, "narrow"), (360, "narrow")])
def test_in_a_browser_all_is_drawn_nothing_fetched_and_nothing_said(
    kind: str, width: int, shown: str, chromium: Any, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(page_of(kind), encoding="utf-8")
    chromium.messages.clear()
    chromium.requests.clear()
    chromium.open(page.as_uri(), width, prefers_color_scheme="light")
    pictures = [one for one in chromium.evaluate(DRAWN) if one[-1] != "none"]
    assert len(pictures) * 2 == page_of(kind).count("<svg")
    assert all(min(sizes) > 10 and n_paths > 2 for *sizes, n_paths, _ in pictures)
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    assert chromium.messages == []
    assert set(chromium.requests) == {page.as_uri()}


def test_in_a_browser_tables_are_sorted_by_their_headings(chromium: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(document_page(findings_of(plans={"owl": plan_of(12)})), encoding="utf-8")
    chromium.open(page.as_uri())
    column = "[...document.querySelector('table').tBodies[0].rows].map(row => row.cells[%d].textContent)"
    press = "document.querySelector('table').tHead.rows[0].cells[%d].querySelector('button').click()"
    assert chromium.evaluate(column % 0) == [str(number) for number in range(12)]  # 2 before 10
    chromium.evaluate(press % 0)
    chromium.evaluate(press % 0)
    assert chromium.evaluate(column % 0) == [str(number) for number in reversed(range(12))]
    heading = "document.querySelector('table').tHead.rows[0].cells[0].getAttribute('aria-sort')"
    assert chromium.evaluate(heading) == "descending"


def test_in_a_browser_a_dark_page_is_dark_and_its_print_is_not(chromium: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(page_of("folder"), encoding="utf-8")
    colours = (
        "[getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('svg text')).fill]"
    )
    found = {}
    for scheme in ("light", "dark"):
        chromium.open(page.as_uri(), prefers_color_scheme=scheme)
        found[scheme] = chromium.evaluate(colours)
    assert found["light"] == ["rgb(255, 255, 255)", "rgb(31, 41, 51)"]
    assert found["dark"] == ["rgb(17, 22, 28)", "rgb(230, 235, 240)"]
    chromium.call("Emulation.setEmulatedMedia", media="print")
    assert chromium.evaluate(colours) == found["light"]
    chromium.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
