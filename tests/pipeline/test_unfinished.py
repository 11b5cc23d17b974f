"""What is kept of an unfinished output, told from what only says of what it would be."""

from pathlib import Path

import pytest

from owl_compress.documents.temporary import temporary_name
from owl_compress.pipeline.unfinished import HEAD, STATE, holds_nothing


@pytest.mark.parametrize(
    ("names", "is_nothing"),
    [
        ((), True),
        ((HEAD,), True),
        ((temporary_name(HEAD), temporary_name(STATE)), True),
        ((HEAD, STATE), False),
        (("states/0",), False),
        (("states/" + temporary_name("0"),), True),
    ],
)
def test_what_a_killed_process_was_writing_is_nothing(
    names: tuple[str, ...], is_nothing: bool, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert holds_nothing(tmp_path) is is_nothing
