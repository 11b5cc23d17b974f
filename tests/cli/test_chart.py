"""A picture from any report, plan, result or folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def documents(done: Callable[..., Any], here: Path, report: Path) -> Path:
    """report.json, and the plans of two allocators."""
    for name in ("owl", "uniform"):
        done("allocate", report, "--allocator", name, "--sparsity", "0.5", "-o", f"{name}.json", "--quiet")
    return here


@pytest.mark.parametrize(
    "files",
    [
        ("report.json",), ("owl.json",), ("owl.json", "uniform.json"), ("uniform.json", "report.json"),
        ("report.json", "owl.json", "owl.json", "--metric", "score_mean"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_whatever_is_named_is_drawn(
    done: Callable[..., Any], documents: Path, files: tuple[str, ...]
) -> None:
    outcome = done("chart", *files, "-o", "x.png", "--json")
    assert outcome.json == {"chart": "x.png"}
    assert outcome.err == "wrote x.png\n"
    assert (documents / "x.png").read_bytes().startswith(PNG)


def test_a_folder_is_its_report_and_plan(
    done: Callable[..., Any], here: Path, run_options: tuple[str, ...]
) -> None:
    done(*run_options, "-o", "OUT", "--quiet")
    done("chart", "OUT", "-o", "folder.png", "--quiet")
    done("chart", "OUT/report.json", "OUT/plan.json", "-o", "files.png", "--quiet")
    assert (here / "folder.png").read_bytes() == (here / "files.png").read_bytes()
    done("chart", "OUT/result.json", "OUT/plan.json", "-o", "counted.png", "--quiet")
    assert (here / "counted.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("owl.json", "-o", "x.svg"), "charts are PNG, name it x.png"),
        (("owl.json", "-o", "no/x.png"), "make its folder no first"),
        (("owl.json", "--metric", "lod@5", "-o", "x.png"), "drawn from a report: name one beside the plan"),
        (("report.json", "--metric", "lod@6", "-o", "x.png"), "no metric 'lod@6': did you mean"),
        (("report.json", "report.json", "-o", "x.png"), "2 reports do not fit on one chart"),
        (("model", "-o", "x.png"), "model holds no sensitivity.json or report.json or plan.json"),
        (("model/config.json", "-o", "x.png"), "no report, plan or result of ours (it names no schema)"),
        (("model/model.safetensors", "-o", "x.png"), "no report, plan or result of ours"),
        (("gone.json", "-o", "x.png"), "cannot read gone.json: No such file"),
        ((), "missing argument FILES: "),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    refused: Callable[..., str], documents: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused("chart", *arguments)


def test_a_profile_is_drawn_with_the_plans_made_from_it(
    done: Callable[..., Any], refused: Callable[..., str], documents: Path, profile: Path
) -> None:
    done("allocate", profile, "--sparsity", "0.5", "-o", "plan.json", "--quiet")
    done("chart", profile, "-o", "alone.png", "--quiet")
    done("chart", profile, "plan.json", "-o", "plan.png", "--quiet")
    done("chart", profile, "plan.json", "uniform.json", "-o", "both.png", "--quiet")
    pictures = [(documents / f"{name}.png").read_bytes() for name in ("alone", "plan", "both")]
    assert all(picture.startswith(PNG) for picture in pictures)
    assert len(set(pictures)) == 3
    assert "2 sensitivity profiles do not fit" in refused("chart", profile, profile, "-o", "x.png")
    assert "a report and a sensitivity profile do not" in refused(
        "chart", "report.json", profile, "-o", "x.png"
    )
    assert "--metric lod@5 is drawn from a report, not" in refused(
        "chart", profile, "--metric", "lod@5", "-o", "x.png"
    )


def test_a_folder_with_a_profile_is_that_and_its_plan(
    done: Callable[..., Any], documents: Path, profile: Path
) -> None:
    done("allocate", profile, "--sparsity", "0.5", "-o", "plan.json", "--quiet")
    done("chart", ".", "-o", "folder.png", "--quiet")
    done("chart", profile, "plan.json", "-o", "files.png", "--quiet")
    assert (documents / "folder.png").read_bytes() == (documents / "files.png").read_bytes()


def test_a_run_that_measures_damage_leaves_its_picture_in_the_folder(
    done: Callable[..., Any], here: Path
) -> None:
    text = ("--calib", "text.txt", "--samples", "2", "--seq-len", "32", "--damage-samples", "2")
    shape = ("--allocator", "sensitivity", "--sparsity", "0.5", "--damage-len", "32", "--levels", "0.2,0.8")
    run = ("run", "model", *text, *shape, "-o", "OUT", "--quiet")
    done(*run)
    picture = (here / "OUT" / "damage.png").read_bytes()
    card = (here / "OUT" / "README.md").read_text()
    assert "](damage.png)" in card
    assert "| predicted: the sum over all parts (kl) |" in card
    done("chart", "OUT", "-o", "again.png", "--quiet")
    assert (here / "again.png").read_bytes() == picture
    assert done("verify", "OUT", "--json").json["ok"]
    done(*run, "--overwrite")
    assert (here / "OUT" / "damage.png").read_bytes() == picture


def test_a_document_of_a_kind_that_has_no_chart_is_refused(refused: Callable[..., str], here: Path) -> None:
    (here / "x.json").write_text('{"schema": "owl-compress/tokens/1"}')
    assert "its schema is owl-compress/tokens" in refused("chart", "x.json", "-o", "x.png")


def test_a_picture_replaces_only_a_picture_of_ours(
    done: Callable[..., Any], refused: Callable[..., str], documents: Path
) -> None:
    photo = PNG + b"a photo of an owl"
    (documents / "photo.png").write_bytes(photo)
    (documents / "plan.png").write_bytes((documents / "owl.json").read_bytes())
    assert "was not written by owl-compress" in refused("chart", "owl.json", "-o", "photo.png")
    assert "plan.png is a file that is read: name another" in refused("chart", "plan.png", "-o", "plan.png")
    assert "plan.png exists and holds a plan" in refused("chart", "owl.json", "-o", "plan.png")
    assert (documents / "photo.png").read_bytes() == photo
    done("chart", "owl.json", "-o", "x.png", "--quiet")
    before = (documents / "x.png").read_bytes()
    done("chart", "owl.json", "uniform.json", "-o", "x.png", "--quiet")
    assert (documents / "x.png").read_bytes() != before
