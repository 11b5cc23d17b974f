"""The folder of a comparison: which ones are gone on in, and which are somebody else's."""

from pathlib import Path

import pytest

from owl_compress.errors import RequestError
from owl_compress.pipeline.comparison.results import begin_folder, prepare_folder, write_tables


def test_a_folder_that_was_left_before_the_first_row_is_gone_on_in(tmp_path: Path) -> None:
    out = tmp_path / "RESULTS"
    prepare_folder(out, [])
    begin_folder(out, "model: builtin\n")
    write_tables(out, (), "uniform")
    assert (out / "table.md").exists()
    assert not (out / "rows.jsonl").exists()
    prepare_folder(out, [])


@pytest.mark.parametrize("name", ["table.md", "notes.txt"])
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "more.txt").write_text("theirs")
    with pytest.raises(RequestError, match="holds no results of compare"):
        prepare_folder(tmp_path, [])
