"""Notes: what is made is made once, whoever asks again, and a step leaves its outcome alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from owl_compress.documents.document import Frozen
from owl_compress.documents.notes import NO_NOTES, KeptError, Notes, NotesIn


class Number(Frozen):
    """A value to take note of."""

    value: float


@pytest.fixture
def made() -> list[float]:
    """The numbers that were made."""
    return []


@pytest.fixture
def make(made: list[float]) -> Callable[[float], Callable[[], Number]]:
    def maker(value: float) -> Callable[[], Number]:
        def work() -> Number:
            made.append(value)
            return Number(value=value)

        return work

    return maker


def test_what_is_noted_is_not_made_again(
    tmp_path: Path, made: list[float], make: Callable[[float], Callable[[], Number]]
) -> None:
    tenth = 0.1 + 0.2  # no short decimal
    assert NotesIn(tmp_path, "").once("one", Number, make(tenth)).value == tenth
    again = NotesIn(tmp_path, "")
    assert again.has("one")
    assert again.once("one", Number, make(2.0)).value == tenth
    assert made == [tenth]


def test_a_step_has_notes_of_its_own_until_it_is_done(
    tmp_path: Path, made: list[float], make: Callable[[float], Callable[[], Number]]
) -> None:
    notes = NotesIn(tmp_path, "")

    def ended(own: Notes) -> Number:
        own.once("part", Number, make(1.0))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        notes.step("whole", Number, ended)
    assert not notes.has("whole")
    assert (tmp_path / "whole/part.json").exists()
    whole = notes.step("whole", Number, lambda own: own.once("part", Number, make(2.0)))
    assert (whole.value, made) == (1.0, [1.0])
    assert [path.name for path in tmp_path.rglob("*")] == ["whole.json"]


def test_a_note_that_is_broken_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{"value": 0.')
    with pytest.raises(KeptError, match=r"one\.json is broken: begin again"):
        NotesIn(tmp_path, "begin again").once("one", Number, lambda: Number(value=1.0))


def test_without_notes_everything_is_made(
    made: list[float], make: Callable[[float], Callable[[], Number]]
) -> None:
    for value in (1.0, 2.0):
        NO_NOTES.once("one", Number, make(value))
        NO_NOTES.step("one", Number, lambda own, value=value: own.once("two", Number, make(value)))
    assert made == [1.0, 1.0, 2.0, 2.0]
    assert not NO_NOTES.has("one")
