"""Samples of a user's own: what is read, and what is refused with its line."""

import gzip
import hashlib
from pathlib import Path

import pytest

from owl_compress.errors import RequestError
from owl_compress.evaluation.task_files import Question, read_task_file

GOOD = '{"question": "Two?", "choices": ["1", "2"], "label": 1}'


def written(folder: Path, *lines: str) -> Path:
    path = folder / "numbers.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_line_is_a_question_with_its_choices_and_the_number_of_the_right_one(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, "", '{"id": 7, "passage": "Cats purr.", ' + GOOD[1:])
    found = read_task_file(path)
    assert found.questions == (
        Question("Two?", ("1", "2"), 1),
        Question("Two?", ("1", "2"), 1, "Cats purr."),
    )
    assert found.name == "numbers"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_prompt_ends_where_a_choice_follows() -> None:
    assert Question("Two?", ("1", "2"), 1).prompt == "Question: Two?\nAnswer:"
    assert Question("Two?", ("1", "2"), 1, "Cats.").prompt == "Cats.\nQuestion: Two?\nAnswer:"


def test_separators_of_lines_inside_a_text_are_no_ends_of_lines(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("Two?", "Two\u2028?"))
    assert [one.question for one in read_task_file(path).questions] == ["Two\u2028?"]


def test_a_compressed_file_is_read_under_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD.encode()))
    assert read_task_file(path).name == "numbers"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"choices": ["1", "2"], "label": 1}', "has no field 'question': a sample has question, choices"),
        ('{"question": "Two?", "label": 1}', "has no field 'choices'"),
        ('{"question": "Two?", "choices": ["1", "2"]}', "has no field 'label'"),
        (GOOD.replace('["1", "2"]', "[]"), "choices has to be a list of two or more texts, not []"),
        (GOOD.replace('["1", "2"]', '["2"]'), "choices has to be a list of two or more texts, not ['2']"),
        (GOOD.replace('["1", "2"]', '"12"'), "choices has to be a list of two or more texts, not '12'"),
        (GOOD.replace('["1", "2"]', '["1", 2]'), "choice 1 has to be text that is not blank, not 2"),
        (GOOD.replace('["1", "2"]', '[" ", "2"]'), "choice 0 has to be text that is not blank, not ' '"),
        (GOOD.replace('"label": 1', '"label": 2'), "label 2 is none of the 2 choices, which are 0 to 1"),
        (GOOD.replace('"label": 1', '"label": -1'), "label -1 is none of the 2 choices"),
        (GOOD.replace('"label": 1', '"label": "1"'), "label has to be a whole number"),
        (GOOD.replace('"label": 1', '"label": 1.0'), "label has to be a whole number"),
        (GOOD.replace('"label": 1', '"label": true'), "counted from 0, not True"),
        (GOOD.replace("Two?", ""), "question has to be text that is not blank, not ''"),
        (GOOD.replace('"Two?"', "null"), "question has to be text that is not blank, not None"),
        ('{"passage": 3, ' + GOOD[1:], "passage has to be text that is not blank, not 3"),
        ("[1, 2]", "is not an object with question, choices, label, but [1, 2]"),
        (GOOD[:-5], "is not JSON"),
    ],
)
def test_a_line_that_is_no_sample_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, GOOD, line, GOOD)
    with pytest.raises(RequestError) as caught:
        read_task_file(path)
    assert str(caught.value).startswith(f"line 2 of {path}")
    assert message in str(caught.value)


def test_a_file_without_samples_is_refused_with_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r'holds no samples: write one a line, as {"question"'):
        read_task_file(written(tmp_path, "", "  "))


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(RequestError, match=str(path)):
            read_task_file(path)
