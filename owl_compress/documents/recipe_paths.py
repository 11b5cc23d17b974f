"""Where the files of a recipe are: paths that begin with "./" or "../" are seen from its own folder."""

import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

WORDS = frozenset({"builtin", "c4", "ptb", "wikitext2"})
"""Models and texts that are named by a word, whatever lies in the working folder."""


def written_path(name: str, folder: Path) -> str:
    """How a recipe in `folder` names what is called `name` here.

    A relative path of something that is there is seen from `folder`. All else is the same everywhere, and
    stays: absolute paths, words, ids of the hub.
    """
    path = Path(name)
    if name in WORDS or path.is_absolute() or name.startswith("~") or not _exists(path):
        return name
    relative = _relative(_real(path), _real(folder))
    return relative if relative.startswith("../") or Path(relative).is_absolute() else f"./{relative}"


def found_path(name: str, folder: Path) -> str:
    """How `name`, written in a recipe in `folder`, is reached from here.

    What is not there may be seen from the working folder, as by recipes of earlier versions: that is told.
    """
    if not name.startswith(("./", "../")):
        return name
    path = _real(folder / name)
    if not _exists(path) and _exists(Path(name)):
        logger.warning("%s is not where the recipe says (%s): taken from the working folder", name, path)
        return name
    return _relative(path, Path.cwd().resolve())


def _relative(path: Path, folder: Path) -> str:
    """`path` as it is seen from `folder`, both absolute; on another drive of Windows it stays absolute."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return str(path)


def _real(path: Path) -> Path:
    """Absolute, with the links on the way followed; the last name stays, which may tell the kind of file."""
    return path if path.name in {"", ".."} else path.absolute().parent.resolve() / path.name


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the file system, a NUL inside
        return False
