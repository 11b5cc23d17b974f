"""Processes at work on one folder: on one grid together, on two never."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from owl_compress.errors import RequestError
from owl_compress.pipeline.comparison.claims import Claims

_AT_WORK = """
import sys
from pathlib import Path
from owl_compress.pipeline.comparison.claims import Claims

with Claims.within(Path(sys.argv[1])) as claims:
    claims.join("a grid", Path("RESULTS"))
    print("joined", flush=True)
    sys.stdin.read()
"""


@contextmanager
def somebody_at_work(folder: Path) -> Iterator[None]:
    """Another process that is at work on `a grid` while the block lasts."""
    with subprocess.Popen(
        [sys.executable, "-c", _AT_WORK, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
        yield
        process.communicate()


def test_another_grid_is_refused_while_somebody_is_at_work(tmp_path: Path) -> None:
    with somebody_at_work(tmp_path), Claims.within(tmp_path) as claims:
        claims.join("a grid", Path("RESULTS"))
        with pytest.raises(RequestError, match="another comparison is at work in results folder RESULTS"):
            claims.join("another grid", Path("RESULTS"))
    with Claims.within(tmp_path) as claims:
        claims.join("another grid", Path("RESULTS"))
