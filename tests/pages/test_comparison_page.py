"""The page of a comparison: curves by method, tables, and what was left out, from rows alone."""

import re
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from owl_compress.cli.comparison_sheets import rows_sheet
from owl_compress.documents.accuracy import TaskAccuracy
from owl_compress.documents.comparison import Row, RowProvenance, Status
from owl_compress.documents.measurements import (
    AgreementRecord,
    LatencyRecord,
    LatencyShape,
    PartLatency,
    PerplexityRecord,
)
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.pages.comparison_page import comparison_page
from owl_compress.pages.comparison_pictures import quality_picture
from owl_compress.pages.comparison_tables import comparison_table, rows_as_csv
from owl_compress.pages.drawing import short_number
from owl_compress.pages.families import families_of
from owl_compress.pages.quality_chart import looks_of
from owl_compress.pages.seeds import figures_of

MADE = RowProvenance(
    versions={"owl-compress": "0.1.0"}, machine={"cpu": "a fast one"}, texts={"calib": "ab" * 32},
    command="owl-compress compare grid.yaml",
)  # fmt: skip


def record(value: float) -> PerplexityRecord:
    return PerplexityRecord(
        perplexity=value, tokens=128, windows=4, seq_len=32, dtype="float32", data="test.txt", bos="first",
        n_params=1000,
    )  # fmt: skip


def row_of(method: str, sparsity: float, seed: int, value: float, **changes: Any) -> Row:
    slope = 0.0 if method == "uniform" else 0.01
    axes: dict[str, Any] = {"sparsity": sparsity, "allocator": method, "seed": seed}
    content: dict[str, Any] = {
        "cell": f"{method}{sparsity}{seed}", "name": f"sparsity={sparsity} {method} seed={seed}",
        "group": f"wanda sparsity={sparsity}", "axes": axes,
        "recipe": {"model": "a/model", "backend": "wanda", **axes}, "status": Status.DONE,
        "unit": Unit.DENSITY, "asked": 1 - sparsity, "achieved": 1 - sparsity,
        "perplexity": {"test.txt": record(value)}, "bytes_on_disk": 5_000_000,
        "bits_per_weight": 32.0, "n_params": 1000,
        "seconds": {"measure": 1.0, "compress": 2.0, "evaluate": 3.0, "total": 6.5},
        "budgets": {f"model.layers.{i}": 1 - sparsity + slope * i for i in range(4)},
        "provenance": MADE,
    }  # fmt: skip
    return Row(**content | changes)


DENSE = row_of(
    "dense", 0.0, 0, 20.0, dense=True, axes={}, group="dense", name="dense", unit=None, asked=None,
    achieved=None, budgets={}, recipe={"model": "a/model"},
)  # fmt: skip
AGREEMENT = AgreementRecord(
    kl=0.5, top1=0.8, positions=10, against="dense", data="test.txt", windows=1, seq_len=16, bos="first"
)
BETTER = {"uniform": 1.0, "owl": 0.9, "linear-depth": 0.95}


def grid(
    methods: Sequence[str] = tuple(BETTER), sparsities: Sequence[float] = (0.5, 0.6, 0.7), seeds: int = 3
) -> list[Row]:
    def value(name: str, sparsity: float, seed: int) -> float:
        return 40 * BETTER.get(name, 1.1) * (1 + seed / 100) * 10 ** (4 * (sparsity - 0.5))

    cells = product(methods, sparsities, range(seeds))
    return [DENSE, *(row_of(*cell, value(*cell)) for cell in cells)]


@cache
def page() -> str:
    return comparison_page(grid(), grid="sparsity: [0.5, 0.6, 0.7]  # <b>")


def headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_curves_hold_mean_and_reach_over_seeds_by_budget() -> None:
    rows = grid()
    (figure,) = figures_of(rows)
    (family,) = families_of(rows, figure, "uniform")
    assert (family.name, family.axis, family.dense) == ("wanda", "sparsity", 20.0)
    assert family.budgets == {0.5: "wanda sparsity=0.5", 0.6: "wanda sparsity=0.6", 0.7: "wanda sparsity=0.7"}
    assert [curve.method for curve in family.curves] == list(BETTER)
    assert [curve.is_baseline for curve in family.curves] == [True, False, False]
    for curve in family.curves:
        for point in curve.points:
            values = [
                row.perplexity["test.txt"].perplexity
                for row in rows
                if row.axes.get("allocator") == curve.method and row.axes.get("sparsity") == point.budget
            ]
            assert point.n_seeds == len(values) == 3
            assert (point.low, point.high) == (min(values), max(values))
            assert point.mean == pytest.approx(sum(values) / 3)


def test_what_drifted_or_failed_is_on_no_curve_and_in_a_table_with_its_reason() -> None:
    rows = grid(sparsities=(0.5,), seeds=1)
    drifted = row_of("random", 0.5, 0, 1.0, status=Status.DRIFTED, reason="keeps <too> much", achieved=0.6)
    refused = row_of("er", 0.5, 0, 1.0, status=Status.REFUSED, reason="no such thing", perplexity={})
    rows += [drifted, refused]
    (figure,) = figures_of(rows)
    (family,) = families_of(rows, figure, "uniform")
    assert [curve.method for curve in family.curves] == list(BETTER)
    html = comparison_page(rows)
    assert "keeps &lt;too&gt; much" in html
    assert "no such thing" in html
    assert "Refused, failed or drifted" in headings(html)


def test_other_backends_and_kinds_of_budget_are_other_families() -> None:
    def recipe(**changes: Any) -> dict[str, Any]:
        return {"recipe": {"model": "a/model", "allocator": "owl", "seed": 0, "backend": "wanda", **changes}}

    rows = [
        row_of("owl", 0.5, 0, 30.0, **recipe(sparsity=0.5), cell="1"),
        row_of("owl", 0.5, 0, 31.0, **recipe(nm="4:8"), cell="2", group="wanda nm=4:8"),
        row_of("owl", 0.5, 0, 32.0, **recipe(sparsity=0.5, backend="sparsegpt"), cell="3", group="sparsegpt"),
        row_of("owl", 0.5, 0, 33.0, **recipe(bits=3, backend="gptq"), cell="4", group="gptq bits=3",
               unit=Unit.BITS, asked=3.0, achieved=3.0),
    ]  # fmt: skip
    (figure,) = figures_of(rows)
    families = families_of(rows, figure, "uniform")
    assert [list(family.budgets) for family in families] == [[0.5], [0.5], [0.5], [3.0]]
    assert [family.axis for family in families] == [
        "sparsity",
        "N:M, N kept of M",
        "sparsity",
        "bits per weight",
    ]
    assert [family.name for family in families] == ["wanda", "wanda N:M", "sparsegpt", "gptq"]
    assert families[1].shown == {0.5: "4:8"}


def test_patterns_of_one_ratio_are_other_families() -> None:
    rows = [
        row_of(
            "owl", 0.5, 0, 30.0 + place, cell=nm, group=f"wanda {nm}", asked=density,
            recipe={"model": "a/model", "allocator": "owl", "backend": "wanda", "nm": nm},
        )
        for place, (nm, density) in enumerate({"2:4": 0.5, "4:8": 0.5, "3:8": 0.375}.items())
    ]  # fmt: skip
    (figure,) = figures_of(rows)
    families = families_of(rows, figure, "uniform")
    assert [(one.name, one.shown) for one in families] == [
        ("wanda N:4", {0.5: "2:4"}), ("wanda N:8", {0.5: "4:8", 0.625: "3:8"})
    ]  # fmt: skip
    assert [point.mean for family in families for point in family.curves[0].points] == [30.0, 31.0, 32.0]


def test_groups_that_come_to_one_budget_are_no_point_together() -> None:
    rows = [
        row_of(
            "owl", 0.5, 0, value, cell=size, group=f"rtn size={size}", unit=Unit.BITS, asked=4.0,
            recipe={"model": "a/model", "allocator": "owl", "backend": "rtn", "size": size},
        )
        for size, value in (("150kB", 30.0), ("160kB", 40.0))
    ]  # fmt: skip
    (figure,) = figures_of(rows)
    families = families_of(rows, figure, "uniform")
    assert [family.curves[0].points[0].mean for family in families] == [30.0, 40.0]
    assert [list(family.budgets.values()) for family in families] == [["rtn size=150kB"], ["rtn size=160kB"]]


def test_the_dense_model_beside_a_family_is_the_one_that_was_evaluated_alike() -> None:
    def at(length: int, value: float, **changes: Any) -> Row:
        recipe = {"model": "a/model", "seq-len": length, **changes.pop("recipe", {})}
        return row_of("owl", 0.5, 0, value, cell=f"{length}{value}", recipe=recipe, **changes)

    as_dense = {"dense": True, "axes": {}, "unit": None, "asked": None, "achieved": None, "budgets": {}}
    made = {"allocator": "owl", "backend": "wanda", "sparsity": 0.5}
    rows = [at(length, 20.0 + length, **as_dense) for length in (16, 64)]
    rows += [at(length, 90.0, recipe=made, group=f"seq-len={length}") for length in (16, 64)]
    (figure,) = figures_of(rows)
    assert [family.dense for family in families_of(rows, figure, "uniform")] == [36.0, 84.0]


def test_budgets_near_each_other_have_one_label() -> None:
    rows = [row_of("owl", sparsity, 0, 30.0) for sparsity in (0.1, 0.11, 0.12, 0.3, 0.49, 0.5)]
    (figure,) = quality_picture(rows, "uniform").draw(9.0).axes
    assert list(figure.xaxis.get_ticklocs()) == [0.1, 0.3, 0.5]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (250_000, "250,000"),
        (45_000_000, "4.5e7"),
        (0.012, "0.012"),
        (0.000175, "1.75e-4"),
        (0, "0"),
        (7.5, "7.5"),
    ],
)
def test_numbers_beside_a_picture_are_short(value: float, shown: str) -> None:
    assert short_number(value) == shown


def test_where_only_backends_are_compared_they_are_the_curves() -> None:
    rows = [
        row_of(
            "uniform", sparsity, 0, 10.0 / (1 - sparsity), cell=f"{backend}{sparsity}",
            group=f"{backend} sparsity={sparsity}", axes={"sparsity": sparsity, "backend": backend},
            recipe={"model": "a/model", "allocator": "uniform", "backend": backend, "sparsity": sparsity},
        )
        for backend in ("wanda", "sparsegpt")
        for sparsity in (0.5, 0.6)
    ]  # fmt: skip
    (figure,) = figures_of(rows)
    (family,) = families_of(rows, figure, "uniform")
    assert (family.name, list(family.budgets)) == ("uniform", [0.5, 0.6])
    assert [(curve.method, curve.is_baseline) for curve in family.curves] == [
        ("wanda", False), ("sparsegpt", False)
    ]  # fmt: skip
    assert [point.budget for point in family.curves[1].points] == [0.5, 0.6]
    assert "Dashed" not in quality_picture(rows, "uniform").caption


def test_a_single_picture_is_of_the_figure_that_is_asked_for() -> None:
    rows = [row.model_copy(update={"agreement": AGREEMENT}) for row in grid(seeds=1)]
    assert quality_picture(rows, "uniform").title == "perplexity test.txt against budget, by method"
    assert quality_picture(rows, "uniform", "KL").title == "KL against budget, by method"
    with pytest.raises(RequestError, match="the rows have no figure 'kl'"):
        quality_picture(rows, "uniform", "kl")
    with pytest.raises(RequestError, match="no compressed model was measured yet"):
        quality_picture([DENSE], "uniform")


def test_of_many_methods_the_best_have_colours_and_the_rest_is_grey() -> None:
    names = ["uniform", *(f"method-{number:02d}" for number in range(20))]
    rows = [row_of(name, 0.5, 0, 100.0 - place) for place, name in enumerate(names)]
    (figure,) = figures_of(rows)
    looks = looks_of(families_of(rows, figure, "uniform"), larger_is_better=False)
    named = {name for name, look in looks.items() if look.is_named}
    assert named == {"uniform", *(f"method-{number:02d}" for number in range(13, 20))}
    ways = {(looks[name].colour, looks[name].marker) for name in named}
    assert len(ways) == len(named)


def test_a_page_says_who_is_best_and_whether_by_more_than_seeds_do() -> None:
    html = page()
    assert "<title>model: 27 compressed models compared</title>" in html
    lead = "owl with 36.36, -10.0 % against uniform (more than seeds do)"
    assert f"Best by perplexity test.txt. wanda sparsity=0.5: {lead}. wanda sparsity=0.6: " in html
    assert headings(html) == [
        "Quality against budget", "Methods", "What each block keeps", "Sizes and times", "Every cell",
        "How it was made",
    ]  # fmt: skip
    for told in (MADE.command, "a fast one", "ab" * 32, "0.7]  # &lt;b&gt;"):
        assert told in html


def test_of_texts_that_differ_a_page_says_whose_they_are() -> None:
    def row(model: str, seed: int) -> Row:
        texts = {"calib": f"drawn {model} {seed}", "data test.txt": f"read {model}"}
        made = MADE.model_copy(update={"texts": texts})
        one = row_of("owl", 0.5, seed, 30.0, provenance=made)
        return one.model_copy(update={"recipe": one.recipe | {"model": model}})

    html = comparison_page([row("a/model", 0), row("a/model", 1)])
    for told in ("calib by seed 0,", "calib by seed 1,", "data test.txt,"):
        assert f"tokens of {told} sha256" in html
    html = comparison_page([row("a/model", 0), row("b/model", 0)])
    for told in ("calib for a/model by seed 0,", "data test.txt for a/model,", "data test.txt for b/model,"):
        assert f"tokens of {told} sha256" in html


def test_accuracy_and_agreement_have_pictures_of_their_own() -> None:
    task = TaskAccuracy(task="boolq", metric="acc", value=0.6, stderr=0.05, samples=100, shots=0, version="1")
    html = comparison_page([row_of("owl", 0.5, 0, 30.0, agreement=AGREEMENT, tasks={"boolq": task})])
    for name in ("boolq", "KL", "top-1", "perplexity test.txt"):
        assert f">{name} of each method</title>" in html
    assert "one standard error over the questions" in html


def test_no_rows_have_no_page() -> None:
    with pytest.raises(RequestError, match="has no rows yet"):
        comparison_page([])


@pytest.mark.slow
def test_hundreds_of_rows_have_a_light_page() -> None:
    names = ["uniform", *(f"method-{number:02d}" for number in range(19))]
    rows = grid(names, (0.4, 0.5, 0.6, 0.7, 0.8))
    assert len(rows) == 301
    assert len(comparison_page(rows)) < 2**20


@pytest.mark.parametrize("width", [1200, 360])
def test_in_a_browser_all_is_drawn_and_every_cell_is_sorted(
    width: int, chromium: Any, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(), encoding="utf-8")
    chromium.messages.clear()
    chromium.requests.clear()
    chromium.open(path.as_uri(), width, prefers_color_scheme="dark")
    boxes = chromium.evaluate(
        "[...document.querySelectorAll('svg')].filter(one => one.checkVisibility())"
        ".map(one => { const box = one.getBoundingClientRect(); return [box.width, box.height]; })"
    )
    assert len(boxes) == page().count("<svg") / 2 > 2
    assert all(min(box) > 50 for box in boxes)
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    table = "[...document.querySelectorAll('table')].at(-1)"
    place = chromium.evaluate(f"[...{table}.tHead.rows[0].cells].findIndex(one => one.textContent == 'seed')")
    chromium.evaluate(f"{table}.tHead.rows[0].cells[{place}].querySelector('button').click()")
    seeds = chromium.evaluate(f"[...{table}.tBodies[0].rows].map(row => row.cells[{place}].textContent)")
    assert seeds == [*"0" * 9, *"1" * 9, *"2" * 9, "–"]
    assert chromium.messages == []
    assert set(chromium.requests) == {path.as_uri()}


@pytest.mark.parametrize(
    ("methods", "baseline", "said"),
    [
        (("uniform", "owl"), "uniform", "Differences are from `uniform`"),
        (("owl", "linear-depth"), "uniform", "No cell is of allocator `uniform`, the baseline"),
        (("uniform", "owl"), "er-plus", "No cell is of allocator `er-plus`, the baseline"),
        (("uniform",), "uniform", ""),
    ],
)
def test_the_tables_say_what_methods_are_compared_with_or_that_it_is_missing(
    methods: Sequence[str], baseline: str, said: str
) -> None:
    text = comparison_table(grid(methods), baseline)
    assert said in text
    assert ("Differences are from" in text) == said.startswith("Differences")
    assert ("the baseline" in text) == said.endswith("the baseline")


def test_figures_beyond_all_measure_are_drawn() -> None:
    rows = [
        row_of(method, sparsity, seed, 1.7e308)
        for method, sparsity, seed in product(("uniform", "owl"), (0.5, 0.7), (0, 1))
    ]
    assert "1.7e+308" in comparison_page(rows)
    assert comparison_page(rows[:2])  # one budget


def test_several_models_are_compared_by_bits_per_byte() -> None:
    def of_model(name: str) -> Row:
        measured = record(20.0).model_copy(update={"bits_per_byte": 1.25})
        row = row_of("owl", 0.5, 0, 20.0, perplexity={"test.txt": measured})
        return row.model_copy(update={"cell": name, "recipe": row.recipe | {"model": name}})

    assert "bits per byte test.txt" in comparison_table([of_model("a"), of_model("b")])
    assert "bits per byte" not in comparison_table([of_model("a")])


def test_the_page_says_what_perplexity_was_measured_over() -> None:
    assert "4 windows of 32 tokens, 128 of them predicted, BOS first, float32" in comparison_page(
        [row_of("owl", 0.5, 0, 20.0)]
    )


def timed(prefill: float, decode: float) -> LatencyRecord:
    part = PartLatency(prefill_seconds=0.1, decode_seconds_per_token=0.1)
    return LatencyRecord(
        name="owl", kernel="dense", device="cpu", threads=1, dtype="float32", shape=LatencyShape(), runs=3,
        n_params=1, prefill_seconds=1.0, decode_seconds_per_token=1.0, prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode, blocks=part, head=None, weight_bytes=1, peak_device_bytes=0,
        peak_host_bytes=1,
    )  # fmt: skip


def test_what_was_timed_is_in_every_table_and_in_no_other() -> None:
    rows = [row_of("owl", 0.5, seed, 20.0, latency=timed(100.0 + seed, 10.0)) for seed in (0, 1)] + [
        row_of("uniform", 0.5, 0, 21.0)
    ]
    table = comparison_table(rows)
    assert "| prefill, tokens/s | decode, tokens/s |" in table
    assert "| 100.5 | 10 |" in table
    head, first, second, untimed = rows_as_csv(rows).splitlines()
    assert head.endswith(",prefill_tokens_per_second,decode_tokens_per_second")
    assert (first[-11:], second[-11:], untimed[-2:]) == (",100.0,10.0", ",101.0,10.0", ",,")
    assert "prefill, tokens/s" in [column.heading for column in rows_sheet(rows, "uniform").columns]
    assert "tokens/s" not in comparison_table(rows[2:]) + rows_as_csv(rows[2:])


def test_a_difference_of_one_seed_is_marked_as_one() -> None:
    rows = [row_of("uniform", 0.5, 0, 21.0), row_of("owl", 0.5, 0, 20.0)]
    sheet = rows_sheet(rows, "uniform")
    assert "(one seed)" in sheet.columns[4].cells[1]
    assert [note.partition(":")[0] for note in sheet.notes] == ["one seed"]
    assert "A difference of one seed has no interval" in comparison_table(rows)
    assert "one seed" in comparison_page(rows)
