"""Which tasks there are: those that lm-eval brings, found by a glance into its files, and those of a user.

lm-eval itself reads all of its 14,000 files before it knows a single name, which takes tens of seconds. Names
stand at the beginning of lines; to look for them takes one or two, and a name that is unknown is told then.
"""

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from owl_compress.errors import RequestError, nearest

PACKAGE = "lm_eval"

OWL7 = "owl7"
NAMED_SETS: Mapping[str, tuple[str, ...]] = {
    OWL7: ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
}
"""Several tasks by one name; "owl7" are those of Table 5 of the OWL paper, arXiv 2310.05175."""

_NAME = re.compile(r"""^["']?(task|group|tag)["']?\s*:[ \t]*["']?([^\s"'\[{#|>&*!]+)""", re.MULTILINE)
_LIST_OF_TAGS = re.compile(r"""^["']?tag["']?\s*:[ \t]*\n((?:[ \t]*-[ \t]*\S+[ \t]*\n?)+)""", re.MULTILINE)
_MOST_BYTES = 2**20
_ITEM = re.compile(r"""-[ \t]*["']?([^\s"']+)""")


def check_installed() -> None:
    """Refuse to go on without lm-eval; it is looked for, not imported.

    Raises:
        RequestError: it is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise RequestError("tasks are scored by the package lm-eval: pip install 'owl-compress[eval]'")


def expanded(names: Sequence[str]) -> tuple[str, ...]:
    """The names with every named set spelled out, each once, in the order of asking."""
    members = (member for name in names for member in NAMED_SETS.get(name, (name,)))
    return tuple(dict.fromkeys(members))


@cache
def stock_tasks() -> Mapping[str, Path | None]:
    """All names that lm-eval brings; see `tasks_in`."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return {name: file for folder in folders for name, file in tasks_in(Path(folder) / "tasks").items()}


def tasks_in(place: Path) -> Mapping[str, Path | None]:
    """The names that a task file has, or all files below a folder: each with its file, a group's with None.

    Raises:
        RequestError: a file that cannot be read.
    """
    # What several tasks have in common, tags too, stands in files without an ending.
    files = [path for path in place.rglob("*") if path.suffix in {".yaml", ""} and _is_small_file(path)]
    found: dict[str, Path | None] = {}
    # The first of two tasks of one name is lm-eval's, too.
    for path in sorted(files, key=Path.as_posix) if place.is_dir() else [place]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise RequestError(f"cannot read {path}: {error.strerror}") from error
        for kind, name in _names_in(text):
            found.setdefault(name, path if kind == "task" else None)
    return found


def _is_small_file(path: Path) -> bool:
    """Whether it may be a task file; what else lies in the folder of a user is not read."""
    return path.is_file() and path.stat().st_size <= _MOST_BYTES


def _names_in(text: str) -> Iterator[tuple[str, str]]:
    yield from _NAME.findall(text)
    for items in _LIST_OF_TAGS.findall(text):
        yield from (("tag", name) for name in _ITEM.findall(items))


def check_known(names: Sequence[str], own: Mapping[str, Path | None]) -> None:
    """Refuse names that neither lm-eval nor the user's own files have.

    Raises:
        RequestError: with the nearest name; where none is near, with where names are found.
    """
    for name in names:
        if name in own or name in stock_tasks():
            continue
        hint = nearest(name, {*own, *stock_tasks(), *NAMED_SETS})
        if not hint.startswith("did"):  # a list of thousands helps nobody
            hint = f"name one of lm-eval, such as boolq, or {', '.join(NAMED_SETS)}, or give --task-file"
        raise RequestError(f"unknown task {name!r}: {hint}")
