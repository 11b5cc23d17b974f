"""What lies where an output is to go: nothing, something of ours, or something of somebody else's."""

import re
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from owl_compress.errors import RequestError

_SCHEMA = re.compile(r'"schema"\s*:\s*"owl-compress/([\w-]+)/\d+"')
_HEAD_BYTES = 4096

PICTURE, PICTURE_SOFTWARE = "picture", "owl-compress"
"""The kind of file that charts are, and what a PNG of ours names as its software."""

PAGE, PAGE_GENERATOR = "page", '<meta name="generator" content="owl-compress">'
"""The kind of file that pages are, and what stands in the head of one of ours."""

EXPORT = "export"
"""The kind of file that plans for other tools are: text, which nothing in it says to be ours."""

DAMAGE_PICTURE = "damage.png"
"""The picture of a sensitivity profile in the folder of what was compressed by it."""

ADAPTER_FOLDER = "adapter"
"""Where an adapter lies that is kept beside the weights of a folder of ours."""

_PNG = b"\x89PNG\r\n\x1a\n"

# A fresh disk is not quite empty where it is mounted.
_OF_FILE_SYSTEMS = {"lost+found"}

_WRITTEN_BY_US = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
    "result.json", "result-*.json", "plan.json", "plan-*.json", "report.json", "recipe.yaml", "README.md",
    "sensitivity.json", "tuning.json", "budgets.png", DAMAGE_PICTURE, "page.html", "*.py", "*.jinja",
    "tokenizer*",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model",
    "*.tiktoken", "tekken.json", "preprocessor_config.json", "processor_config.json",
    "quantize_config.json", "adapter_config.json", "quant_log.csv",
)  # fmt: skip
_FOLDERS_BY_US = (ADAPTER_FOLDER, "additional_chat_templates", "uniform", "owl", "__pycache__")


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing that anybody put there."""
    return all(entry.name in _OF_FILE_SYSTEMS for entry in folder.iterdir())


def check_may_replace(named: Path, real: Path, inputs: Iterable[Path | str], *, overwrite: bool) -> None:
    """Refuse to replace a folder that holds something, unless it is an output of ours and is to be replaced.

    Raises:
        RequestError: naming what lies there that is not ours.
    """
    if not overwrite:
        remedy = ", or replace it with --overwrite" if _is_ours(real) else ""
        raise RequestError(
            f"output folder {named} exists and is not empty: name a new one or remove it{remedy}"
        )
    for given in inputs:
        if _is_same(given, real):
            raise RequestError(f"output folder {named} is the model that is read: name another")
    if not _is_ours(real):
        raise RequestError(
            f"output folder {named} holds no result of owl-compress, so --overwrite leaves it alone: name "
            "another"
        )
    foreign = _foreign(real)
    if foreign:
        raise RequestError(
            f"output folder {named} holds {foreign!r}, which owl-compress did not write: move it away first"
        )


def check_is_outside(named: Path, real: Path, inputs: Iterable[Path | str]) -> None:
    """Refuse an output in a folder that is read: `adapter` in one of ours would be taken for its adapter.

    Raises:
        RequestError: it lies there.
    """
    for given in inputs:
        if any(_is_same(given, folder) for folder in real.parents):
            raise RequestError(
                f"output folder {named} lies in {given}, which is read: name one outside of it"
            )


def check_is_free(named: Path, real: Path, inputs: Iterable[Path | str], kind: str | None) -> None:
    """Refuse to write over an input, a device, or a file that is no document, or picture, of that `kind`.

    Raises:
        RequestError: see above.
    """
    if not real.exists():
        return
    if any(_is_same(given, real) for given in inputs):
        raise RequestError(f"output file {named} is a file that is read: name another")
    if not real.is_file():
        raise RequestError(
            f"output file {named} is no file but a device or a pipe: name a file; --json writes to stdout"
        )
    if kind is None or real.stat().st_size == 0:
        return
    found = _kind_of(real)
    if kind == EXPORT and found is None and _is_text(real):
        return
    if found != kind:
        what = f"holds a {found}" if found else "was not written by owl-compress"
        raise RequestError(f"output file {named} exists and {what}: name another, or remove it")


def _is_ours(folder: Path) -> bool:
    results = [folder / "result.json", *sorted(folder.glob("result-*.json"))]
    return any(_kind_of(result) == "result" for result in results if result.is_file())


def _foreign(folder: Path) -> str | None:
    """The first entry of a folder of ours that we do not write."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            if entry.name not in _FOLDERS_BY_US:
                return entry.name
            if entry.name in {ADAPTER_FOLDER, "uniform", "owl"} and (within := _foreign(entry)):
                return f"{entry.name}/{within}"
        elif entry.is_symlink() or not any(fnmatch(entry.name, pattern) for pattern in _WRITTEN_BY_US):
            return entry.name
    return None


def _kind_of(path: Path) -> str | None:
    """What a file of ours is; None for the files of others."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(_PNG):
        return PICTURE if PICTURE_SOFTWARE.encode() in head else None
    if PAGE_GENERATOR.encode() in head:
        return PAGE
    found = _SCHEMA.search(head.decode("utf-8", errors="replace"))
    return found[1] if found else None


def _is_text(path: Path) -> bool:
    """Whether a file begins like one of text."""
    with path.open("rb") as file:
        return b"\0" not in file.read(_HEAD_BYTES)


def _is_same(given: Path | str, real: Path) -> bool:
    """Whether a name stands for the file or folder `real`; a name of something else may be no path at all."""
    with suppress(OSError, RuntimeError, ValueError):
        return Path(given).expanduser().resolve() == real
    return False
