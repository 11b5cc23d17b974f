"""A page from anything that owl-compress wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def out(done: Callable[..., Any], here: Path, run_options: tuple[str, ...]) -> Path:
    """A folder that `run` wrote, evaluated."""
    done(*run_options, "--data", "other.txt", "-o", "OUT", "--quiet")
    return here / "OUT"


@pytest.mark.parametrize(
    "files",
    [("report.json",), ("plan.json",), ("sensitivity.json",), ("report.json", "plan.json")],
    ids=" ".join,
)
def test_whatever_is_named_has_a_page(
    done: Callable[..., Any], here: Path, plan: Path, profile: Path, files: tuple[str, ...]
) -> None:
    outcome = done("report", *files, "-o", "page.html", "--json")
    assert outcome.json == {"page": "page.html"}
    assert outcome.err == "wrote page.html\n"
    assert (here / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_folder_is_all_that_is_known_of_it(done: Callable[..., Any], here: Path, out: Path) -> None:
    done("report", "OUT", "-o", "page.html", "--quiet")
    html = (here / "page.html").read_text(encoding="utf-8")
    result = json.loads((out / "result.json").read_text())
    for told in (
        "model at sparsity 0.6",
        result["plan"] in html and "fingerprint of plan.json",
        "sparsity: 0.6",
    ):
        assert told in html
    assert f"{result['evaluation']['compressed']['perplexity']:,.2f}" in html
    done("report", "OUT/report.json", "OUT/plan.json", "OUT/result.json", "-o", "files.html", "--quiet")
    assert "sparsity: 0.6" not in (here / "files.html").read_text(encoding="utf-8")


def test_a_page_takes_the_place_of_a_page_and_of_nothing_else(
    done: Callable[..., Any], refused: Callable[..., str], here: Path, plan: Path
) -> None:
    done("report", "plan.json", "-o", "page.html", "--quiet")
    first = (here / "page.html").read_bytes()
    done("report", "plan.json", "-o", "page.html", "--quiet")
    assert (here / "page.html").read_bytes() == first
    (here / "mine.html").write_text("<p>my own</p>")
    assert "was not written by owl-compress" in refused("report", "plan.json", "-o", "mine.html")
    (here / "in.html").write_bytes(plan.read_bytes())
    assert "in.html is a file that is read" in refused("report", "in.html", "-o", "in.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan.json", "-o", "page.json"), "pages are HTML, name it page.html"),
        (("plan.json", "-o", "no/page.html"), "make its folder no first"),
        (("model", "-o", "x.html"), "model holds nothing of ours: name a folder that run"),
        (("model/config.json", "-o", "x.html"), "no report, plan or result of ours (it names no schema)"),
        (("gone.json", "-o", "x.html"), "cannot read gone.json: No such file"),
        (("cut.json", "-o", "x.html"), "cut.json is not whole JSON"),
        (("report.json", "again.json", "-o", "x.html"), "2 reports do not fit on one page"),
        (("plan.json", "other.json", "-o", "x.html"), "are of different models"),
        (("/dev/zero", "-o", "x.html"), "cannot read /dev/zero: it is a pipe or a device"),
        ((), "missing argument FILES: "),
        (("plan.json",), "missing option --out"),
    ],
)  # fmt: skip
def test_what_has_no_page_is_refused(
    refused: Callable[..., str],
    here: Path,
    plan: Path,
    edit_json: Callable[..., None],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    (here / "cut.json").write_text(plan.read_text()[:-20])
    (here / "again.json").write_text((here / "report.json").read_text())
    (here / "other.json").write_text(plan.read_text().replace("model.layers", "decoder.layers"))
    (here / "folder.html").mkdir()
    assert message in refused("report", *arguments)


def test_a_folder_is_no_page(refused: Callable[..., str], here: Path, plan: Path) -> None:
    (here / "folder.html").mkdir()
    assert "output file folder.html is a folder" in refused("report", "plan.json", "-o", "folder.html")


def test_a_full_disk_leaves_the_old_page(
    done: Callable[..., Any], refused: Callable[..., str], plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("report", "plan.json", "-o", "page.html", "--quiet")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("owl_compress.documents.disk.permit_", full)
    assert "disk full while writing page.html" in refused("report", "plan.json", "-o", "page.html")
