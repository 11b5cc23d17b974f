"""Documents are read as they were written, and what is not ours is refused in one line."""

import json
import re
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from owl_compress.documents.document import Document
from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.errors import RequestError

GOLDEN = Path(__file__).parent / "golden"
DOCUMENTS: dict[str, type[Document]] = {"report": ImportanceReport, "plan": Plan, "result": Result}


class Note(Document):
    SCHEMA: ClassVar[str] = "owl-compress/note/2"
    schema_: Literal["owl-compress/note/2"] = Field(default="owl-compress/note/2", alias="schema")
    text: str = ""
    numbers: tuple[float, ...] = ()


@pytest.fixture(params=DOCUMENTS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def refusal(cls: type[Document], path: Path) -> str:
    """The one line with which reading `path` is refused."""
    with pytest.raises(RequestError) as caught:
        cls.read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_lists_of_numbers_stay_on_one_line() -> None:
    note = Note(text="x", numbers=(1, -2.5, 3e-7))
    assert note.to_json() == (
        '{\n "schema": "owl-compress/note/2",\n "text": "x",\n "numbers": [1.0, -2.5, 3e-07]\n}\n'
    )
    assert Note(numbers=()).to_json().endswith('"numbers": []\n}\n')


@pytest.mark.parametrize("text", ["a [ 1 ] b", "[ 1, 2 ]", "[\n 1,\n 2\n]", "ä‖×", 'quote " and \\'])
def test_text_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    note = Note(text=text)
    assert json.loads(note.to_json())["text"] == text
    note.write(tmp_path / "note.json")
    assert Note.read(tmp_path / "note.json") == note


def test_the_fingerprint_is_of_the_content_not_the_layout(tmp_path: Path, kind: str) -> None:
    document = DOCUMENTS[kind].read(GOLDEN / f"{kind}.json")
    shuffled = json.dumps(json.loads(document.to_json()), indent=7, sort_keys=True)
    (tmp_path / "other.json").write_text(shuffled, encoding="utf-8")
    again = DOCUMENTS[kind].read(tmp_path / "other.json")
    assert again.fingerprint == document.fingerprint
    assert re.fullmatch("[0-9a-f]{64}", document.fingerprint)
    assert Note(text="a").fingerprint != Note(text="b").fingerprint


def test_values_are_frozen_and_know_no_nan() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Note().text = "x"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="finite"):
        Note(numbers=(float("nan"),))


def test_a_missing_file(tmp_path: Path, kind: str) -> None:
    message = refusal(DOCUMENTS[kind], tmp_path / "none.json")
    assert message == f"cannot read {tmp_path / 'none.json'}: No such file or directory"


def test_a_folder(tmp_path: Path, kind: str) -> None:
    assert "Is a directory" in refusal(DOCUMENTS[kind], tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file(tmp_path: Path, kind: str, share: float) -> None:
    whole = (GOLDEN / f"{kind}.json").read_text(encoding="utf-8")
    path = tmp_path / "cut.json"
    path.write_text(whole[: int(share * len(whole))], encoding="utf-8")
    assert "is not whole JSON" in refusal(DOCUMENTS[kind], path)


def test_a_file_that_is_no_text(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)))
    assert "is not whole JSON" in refusal(DOCUMENTS[kind], path)


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"schema": null}', '{"schema": ["a"]}'])
def test_json_of_somebody_else(tmp_path: Path, kind: str, content: str) -> None:
    path = tmp_path / "foreign.json"
    path.write_text(content, encoding="utf-8")
    message = refusal(DOCUMENTS[kind], path)
    assert f"expected '{DOCUMENTS[kind].SCHEMA}': this is another kind of file" in message


def test_a_document_of_another_kind(kind: str) -> None:
    other = next(name for name in DOCUMENTS if name != kind)
    message = refusal(DOCUMENTS[kind], GOLDEN / f"{other}.json")
    assert f"has schema 'owl-compress/{other}/1', expected 'owl-compress/{kind}/1'" in message


@pytest.mark.parametrize("version", ["2", "10"])
def test_a_newer_schema(tmp_path: Path, kind: str, version: str) -> None:
    content = json.loads((GOLDEN / f"{kind}.json").read_text(encoding="utf-8"))
    content["schema"] = f"owl-compress/{kind}/{version}"
    content["what nobody knows yet"] = 1
    path = tmp_path / "newer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    message = refusal(DOCUMENTS[kind], path)
    assert f"newer than owl-compress/{kind}/1 which this version reads: upgrade owl-compress" in message


@pytest.mark.parametrize("schema", ["owl-compress/note/1", "owl-compress/note/x", "owl-compress/note"])
def test_an_older_or_odd_schema_is_not_called_newer(tmp_path: Path, schema: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"schema": schema}), encoding="utf-8")
    assert "this is another kind of file" in refusal(Note, path)


def test_an_unknown_key(tmp_path: Path, kind: str) -> None:
    content = json.loads((GOLDEN / f"{kind}.json").read_text(encoding="utf-8"))
    content["surprise"] = "x"
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert "surprise: is not known here (got 'x')" in refusal(DOCUMENTS[kind], path)
