"""JSON is read strictly: nothing is dropped or made up, and what cannot be read is said in one line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.strict_json import MAX_DEPTH, has_surrogates, parse_json, read_json
from owl_compress.errors import RequestError

GOLDEN = Path(__file__).parent / "golden"
KINDS: dict[str, Any] = {"report": ImportanceReport, "plan": Plan, "result": Result}


@pytest.mark.parametrize("value", [1, -(2**64), 1.5e-7, "ä\n😀", None, [], {"a": [{"b": [1, 2.5]}]}])
def test_ordinary_json_is_read_as_ever(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "a.json") == [1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "key 'a' is given twice"),
        ('[{"x": {"y": 1, "y": 2}}]', "key 'y' is given twice"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 400 + "]" * 400, "nested deeper than"),
        ('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), "nested deeper than"),
        ("1" * 5000, "the number 1111111111… has 5000 digits"),
        ("[-" + "9" * 400 + "]", "has 401 digits"),
        (r'["\ud800"]', "half a surrogate pair"),
        (r'{"\udfff": 1}', "half a surrogate pair"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=reason) as refused:
        read_json(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


def test_depth_up_to_the_limit_is_read() -> None:
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)


def test_a_whole_pair_of_surrogates_is_a_character() -> None:
    assert parse_json(r'"\ud83e\udd89"') == "🦉"
    assert not has_surrogates("🦉")
    assert has_surrogates(os.fsdecode(b"caf\xe9"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(RequestError, match="it is a pipe or a device"):
            KINDS[kind].read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_far_too_large_is_not_read(kind: str, tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**31)  # sparse: takes no room
    with pytest.raises(RequestError, match=r"with 2,147,483,648 bytes it is no file of ours"):
        KINDS[kind].read(tmp_path / "large.json")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "message"),
    [("x" * 300, "has a name of 300 bytes"), ("a\0b", "has a NUL in it"), ("a.json/b", "cannot read")],
)
def test_a_name_that_no_file_can_have(kind: str, name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(RequestError, match=message):
        KINDS[kind].read(tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["1" * 5000, "²", "x" * 10_000])
def test_an_odd_schema_is_shown_cut(kind: str, version: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"schema": f"owl-compress/{kind}/{version}"}), encoding="utf-8")
    with pytest.raises(RequestError, match="this is another kind of file") as refused:
        KINDS[kind].read(path)
    assert len(str(refused.value)) < 400 + len(str(path))


def changed(kind: str, tmp_path: Path, where: tuple[str | int, ...], value: object) -> Path:
    """The golden file with one value changed."""
    content = json.loads((GOLDEN / f"{kind}.json").read_text(encoding="utf-8"))
    place = content
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    path = tmp_path / f"{kind}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


LINEAR = ("blocks", 0, "linears", 0)


@pytest.mark.parametrize(
    ("kind", "where", "value", "reason"),
    [
        ("report", (*LINEAR, "metrics", "lod@5"), 1e308, "metrics.lod@5: has to be"),
        ("report", ("blocks", 1, "metrics", "lod@5"), -1e200, "metrics.lod@5: has to be"),
        ("report", (*LINEAR, "metrics", "lod@5"), float("nan"), "metrics.lod@5: has to be a finite"),
        ("report", (*LINEAR, "metrics", "lod@5"), float("inf"), "metrics.lod@5: has to be a finite"),
        ("report", (*LINEAR, "n_weights"), 10**400, "401 digits"),
        ("report", (*LINEAR, "n_weights"), 2**62, "n_weights: has to be"),
        ("report", (*LINEAR, "n_weights"), -6, "n_weights: has to be above 0"),
        ("report", (*LINEAR, "shape"), [-2, -3], "shape.0: has to be above 0"),
        ("report", (*LINEAR, "score_histogram", "first_bin"), 10**12, "outside the range of floats"),
        ("report", (*LINEAR, "score_histogram", "first_bin"), -(10**9), "outside the range of floats"),
        ("report", (*LINEAR, "score_histogram", "bins_per_octave"), 10**9, "bins_per_octave: has to be"),
        ("report", (*LINEAR, "score_histogram", "counts"), [-1, 6], "counts.0: has to be"),
        ("report", ("blocks", 0, "n_weights"), 10**19, "but its linears add up to"),
        ("plan", ("grid",), {"kept_of": 10**9}, "kept_of: has to be"),
        ("plan", ("grid",), {"bits": [10**9]}, "grid.BitsGrid.bits.0: has to be"),
        ("plan", ("budgets", 0, "n_weights"), 10**18, "n_weights: has to be"),
        ("plan", ("budgets", 0, "n_weights"), -40, "n_weights: has to be above 0"),
        ("plan", ("budgets", 0, "value"), 1e308, "outside \\[low"),
        ("plan", ("target",), 1e308, "target 1e\\+308 is outside \\[low 0.0, high 1.0\\]"),
        ("plan", ("allocator", "parameters", "lam"), float("inf"), "finite"),
        ("result", ("totals", "n_params_before"), -1, "n_params_before: has to be"),
        ("result", ("totals", "n_weights"), 0, "totals.n_weights"),
        ("result", ("budgets", 0, "n_weights"), 0, "n_weights: has to be above 0"),
        ("result", ("totals", "achieved"), float("nan"), "totals.achieved: has to be a finite"),
        ("result", ("budgets",), [], "budgets"),
    ],
)
def test_numbers_that_cannot_be_are_refused_with_their_place(
    kind: str, where: tuple[str | int, ...], value: object, reason: str, tmp_path: Path
) -> None:
    path = changed(kind, tmp_path, where, value)
    with pytest.raises(RequestError, match=reason) as refused:
        KINDS[kind].read(path)
    assert "\n" not in str(refused.value)
