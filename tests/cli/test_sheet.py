"""Tables as text: no word split, numbers aligned, optional columns gone before a terminal overflows."""

import pytest
from rich.cells import cell_len

from owl_compress.cli.sheet import Column, Sheet
from owl_compress.pages.words import number_format

SHEET = Sheet(
    "Title",
    (
        Column("name", ("a", "longer"), is_text=True),
        Column("count", ("1", "23")),
        Column("extra", ("0.5", "0.25"), is_optional=True),
        Column("more", ("x", "y"), is_optional=True),
    ),
    ("a note",),
)


def lines(sheet: Sheet) -> list[str]:
    return [*sheet.head(), *sheet.body()]


def test_text_is_aligned_left_and_numbers_right() -> None:
    assert lines(SHEET) == [
        "Title",
        "name    count  extra  more",
        "------  -----  -----  ----",
        "a           1    0.5     x",
        "longer     23   0.25     y",
        "a note",
    ]  # fmt: skip


def test_the_last_optional_columns_go_first_and_are_named() -> None:
    assert SHEET.fitting(SHEET.width) == SHEET
    narrow = SHEET.fitting(SHEET.width - 1)
    assert [column.heading for column in narrow.columns] == ["name", "count", "extra"]
    assert narrow.notes == ("a note", "no room for more: see --json")
    narrowest = SHEET.fitting(1)
    assert [column.heading for column in narrowest.columns] == ["name", "count"]
    assert narrowest.notes[-1] == "no room for extra, more: see --json"


def test_wide_characters_take_two_cells() -> None:
    sheet = Sheet("t", (Column("名", ("猫猫", "a"), is_text=True), Column("n", ("1", "2"))))
    assert {cell_len(line) for line in lines(sheet)[1:]} == {4 + 2 + 1}


def test_a_table_of_nothing_is_its_title_and_notes() -> None:
    assert lines(Sheet("Title", (), ("nothing found",))) == ["Title", "nothing found"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.07403, 0.0001], ["0.07403", "0.00010"]),
        ([589.5, 0.25], ["589.5", "0.2"]),
        ([58912.0], ["58,912"]),
        ([0.0, 0.0], ["0.0", "0.0"]),
        ([-2.5, 1.0], ["-2.500", "1.000"]),
        ([1e12], ["1.000e+12"]),
        ([1e-9, 1e-12], ["1.000e-09", "1.000e-12"]),
    ],
)
def test_numbers_of_a_column_have_equally_many_decimals(values: list[float], shown: list[str]) -> None:
    assert [format(value, number_format(values)) for value in values] == shown
