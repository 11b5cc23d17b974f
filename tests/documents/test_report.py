"""report.json: what it looks like, and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from owl_compress.documents.provenance import CalibrationRecord, ModelIdentity, Provenance
from owl_compress.documents.report import BlockReport, ImportanceReport, LinearReport, ScoreHistogram
from owl_compress.errors import RequestError

GOLDEN = Path(__file__).parent / "golden" / "report.json"


def example() -> ImportanceReport:
    """Two unequal blocks; numbers with every kind of digits."""
    blocks = tuple(
        BlockReport(
            name=f"model.layers.{index}",
            n_weights=6 + 8,
            metrics={"lod@5": 0.0625 / (index + 1), "weight_l1": 123456.75},
            linears=(
                LinearReport(
                    name=f"model.layers.{index}.self_attn.q_proj",
                    role="attn.q",
                    shape=(2, 3),
                    n_weights=6,
                    metrics={"lod@5": 0.1, "weight_l1": 1e-7},
                    score_histogram=ScoreHistogram(
                        bins_per_octave=8, first_bin=-3, counts=(1, 0, 4), n_zero=1
                    ),
                ),
                LinearReport(
                    name=f"model.layers.{index}.mlp.down_proj",
                    role="mlp.down",
                    shape=(4, 2),
                    n_weights=8,
                    metrics={},
                ),
            ),
        )
        for index in range(2)
    )
    return ImportanceReport(
        model=ModelIdentity(id="org/tiny", revision="abc123", family="llama", dtype="bfloat16"),
        blocks=blocks,
        provenance=Provenance(
            calibration=CalibrationRecord(
                source="wiki [ 1, 2 ].txt",
                token_ids_sha256="ab" * 32,
                sequences=16,
                seq_len=512,
                sampling="random",
                seed=0,
                bos="first",
            ),
            versions={"owl-compress": "0.1.0", "torch": "2.13.0"},
        ),
        notes=("family 'plain' is not in the table; blocks found by structure at 'stages'",),
    )


def test_the_file_looks_as_agreed() -> None:
    assert example().to_json() == GOLDEN.read_text(encoding="utf-8")


def test_reading_and_writing_changes_no_byte(tmp_path: Path) -> None:
    report = ImportanceReport.read(GOLDEN)
    assert report == example()
    report.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == GOLDEN.read_bytes()


def test_sizes_add_up() -> None:
    report = example()
    assert report.n_weights == 28
    histogram = report.blocks[0].linears[0].score_histogram
    assert histogram is not None
    assert histogram.total == 6


def test_nothing_can_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        example().blocks[0].name = "other"  # type: ignore[misc]


Break = Callable[[dict[str, Any]], Any]


def first_linear(content: dict[str, Any]) -> dict[str, Any]:
    linear: dict[str, Any] = content["blocks"][0]["linears"][0]
    return linear


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (lambda c: c.pop("blocks"), "blocks: is missing"),
        (lambda c: c.update(blocks=[]), "blocks: has 0 entries, and needs 1 or more"),
        (lambda c: c.update(surprise=1), "surprise: is not known here (got 1)"),
        (lambda c: first_linear(c).update(n_weights=7), "q_proj has n_weights 7 but shape (2, 3)"),
        (lambda c: first_linear(c).update(shape=[3, 3]), "q_proj has n_weights 6 but shape (3, 3)"),
        (lambda c: first_linear(c).update(shape=[2, 0]), "shape.1: has to be above 0 (got 0)"),
        (lambda c: c["blocks"][0].update(n_weights=15), "has n_weights 15 but its linears add up to 14"),
        (
            lambda c: first_linear(c)["metrics"].update({"lod@5": "high"}),
            "metrics.lod@5: has to be a number",
        ),
        (
            lambda c: first_linear(c)["metrics"].update({"lod@5": float("nan")}),
            "metrics.lod@5: has to be a finite",
        ),
        (lambda c: first_linear(c)["score_histogram"].update(n_zero=2), "does not count 6 scores"),
        (
            lambda c: first_linear(c)["score_histogram"].update(counts=[-1, 6]),
            "counts.0: has to be 0 or",
        ),
        (
            lambda c: first_linear(c).update(name="model.layers.1.self_attn.q_proj"),
            "a linear is listed twice",
        ),
        (lambda c: c["blocks"][0].update(name="model.layers.1"), "a block is listed twice"),
        (
            lambda c: c["provenance"]["calibration"].update(bos="sometimes"),
            "bos: has to be 'every', 'first' or",
        ),
        (
            lambda c: c["provenance"]["calibration"].update(sequences=0),
            "sequences: has to be above 0",
        ),
    ],
)
def test_a_broken_report_is_refused_with_the_place(tmp_path: Path, break_: Break, message: str) -> None:
    content = json.loads(GOLDEN.read_text(encoding="utf-8"))
    break_(content)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        ImportanceReport.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
