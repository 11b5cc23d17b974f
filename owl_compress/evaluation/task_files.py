"""Samples of a user's own, in a file of JSON lines: a question, its choices, the number of the right one.

    {"question": "Water freezes at", "choices": ["0 degrees", "100 degrees"], "label": 0}

A `passage` to read first may stand beside these; other fields are left alone.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl_compress.data.raw_text import COMPRESSED_SUFFIXES, check_regular, read_string
from owl_compress.documents.paths import given_path
from owl_compress.documents.strict_json import parse_json
from owl_compress.errors import RequestError, shown

_FIELDS = ("question", "choices", "label")
_FEWEST_CHOICES = 2


@dataclass(frozen=True)
class Question:
    """One sample; `label` counts from 0, and `passage` may be empty."""

    question: str
    choices: tuple[str, ...]
    label: int
    passage: str = ""

    @property
    def prompt(self) -> str:
        """What a choice is scored behind: the choice follows after a blank.

        lm-eval's own boolq and arc_easy are written so.
        """
        passage = f"{self.passage}\n" if self.passage else ""
        return f"{passage}Question: {self.question}\nAnswer:"


@dataclass(frozen=True)
class TaskFile:
    """The samples of one file, with the sha256 of its content; they go by the name of the file."""

    path: Path
    questions: tuple[Question, ...]
    sha256: str

    @property
    def name(self) -> str:
        """The name of the task: that of the file without its endings, "arc_easy" for arc_easy.jsonl.gz."""
        return task_name(self.path)


def task_name(path: Path) -> str:
    """What the task of a file is called, before it is read."""
    plain = Path(path.stem) if path.suffix.lower() in COMPRESSED_SUFFIXES else path
    return plain.stem


def read_task_file(path: Path | str) -> TaskFile:
    """The samples in the file at `path`.

    Raises:
        RequestError: the file cannot be read, holds no sample, or a line is not one; the line is named.
    """
    path = given_path(path)
    check_regular(path)
    content = read_string(path)
    questions = tuple(_questions(path, content))
    if not questions:
        raise RequestError(
            f"{path} holds no samples: write one a line, as "
            '{"question": "...", "choices": ["...", "..."], "label": 0}'
        )
    return TaskFile(path, questions, hashlib.sha256(path.read_bytes()).hexdigest())


def _questions(path: Path, content: str) -> Iterator[Question]:
    # Not str.splitlines: JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            sample = parse_json(line)
        except ValueError as error:
            raise RequestError(f"{where} is not JSON ({error}): repair or remove it") from error
        yield _question(sample, where)


def _question(sample: Any, where: str) -> Question:
    if not isinstance(sample, Mapping):
        raise RequestError(f"{where} is not an object with {', '.join(_FIELDS)}, but {shown(sample)}")
    for name in _FIELDS:
        if name not in sample:
            raise RequestError(f"{where} has no field {name!r}: a sample has {', '.join(_FIELDS)}")
    passage = sample.get("passage")
    return Question(
        _text(sample["question"], "question", where),
        choices := _choices(sample["choices"], where),
        _label(sample["label"], len(choices), where),
        "" if passage is None or passage == "" else _text(passage, "passage", where),
    )


def _text(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{where}: {what} has to be text that is not blank, not {shown(value)}")
    return value


def _choices(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < _FEWEST_CHOICES:
        raise RequestError(f"{where}: choices has to be a list of two or more texts, not {shown(value)}")
    return tuple(_text(choice, f"choice {number}", where) for number, choice in enumerate(value))


def _label(value: Any, n_choices: int, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(
            f"{where}: label has to be a whole number, that of the right choice counted from 0, not "
            f"{shown(value)}"
        )
    if not 0 <= value < n_choices:
        raise RequestError(
            f"{where}: label {value} is none of the {n_choices} choices, which are 0 to {n_choices - 1}"
        )
    return value
