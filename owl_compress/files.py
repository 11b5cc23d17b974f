"""Reading and writing: JSON documents with a schema version, and output folders that are whole or absent."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from owl_compress.errors import RequestError

# Only the layout of JSON has line breaks, never a string in it: what a string says stays as it is.
_NUMBER_LIST = re.compile(r"\[\n\s*(-?\d[-\d.eE+,\s]*?)\n\s*\]")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


class Frozen(BaseModel):
    """Base of all values that cross a stage: immutable, no unknown keys, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True, validate_by_name=True
    )


class Document(Frozen):
    """A value with a file of its own; `schema` names format and version, as in "owl-compress/plan/1"."""

    SCHEMA: ClassVar[str]

    def to_json(self) -> str:
        """Readable JSON text; lists of numbers stay on one line."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False)
        return _NUMBER_LIST.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n"

    @property
    def fingerprint(self) -> str:
        """sha256 of the document's content, independent of its layout in the file."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def write(self, path: Path | str) -> None:
        """Write the document to `path`, whole or not at all."""
        write_text(Path(path), self.to_json())

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read and validate the document at `path`.

        Raises:
            RequestError: unreadable, not JSON, of another kind, of a newer version, or with invalid content.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RequestError(f"cannot read {path}: {error.strerror}") from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RequestError(
                f"{path} is not whole JSON ({error}): truncated, or not a file of ours"
            ) from error
        cls._check_schema(content, path)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise RequestError(f"{path}: {first_problem(error)}") from error

    @classmethod
    def _check_schema(cls, content: Any, path: Path) -> None:
        found = content.get("schema") if isinstance(content, dict) else None
        if found == cls.SCHEMA:
            return
        kind, _, version = cls.SCHEMA.rpartition("/")
        found_kind, _, found_version = str(found).rpartition("/")
        if found_kind == kind and found_version.isdigit() and int(found_version) > int(version):
            raise RequestError(
                f"{path} has schema {found}, newer than {cls.SCHEMA} which this version reads: "
                "upgrade owl-compress"
            )
        raise RequestError(
            f"{path} has schema {found!r}, expected {cls.SCHEMA!r}: this is another kind of file"
        )


def first_problem(error: ValidationError) -> str:
    """One line for the first thing pydantic found wrong: where, what, and the value."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    shown = f" (got {value!r})" if isinstance(value, str | int | float) else ""
    return f"{where}: {message}{shown}" if where else message


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file beside it, so that `path` is never half written."""
    with _disk_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            _permit_(Path(temporary))
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def check_output_folder(path: Path) -> None:
    """Refuse an output folder that could not be written, or holds anything already, before any work is done.

    Raises:
        RequestError: it is a file, is not empty, or lies where no folder can be made.
    """
    if path.exists() and not path.is_dir():
        raise RequestError(f"output folder {path} is a file: name a folder that is new or empty")
    if path.exists() and any(path.iterdir()):
        raise RequestError(f"output folder {path} exists and is not empty: name a new one or remove it")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RequestError(f"cannot make output folder {path}: {parent} is no folder that can be written to")


def check_output_file(path: Path) -> None:
    """Refuse an output file that could not be written, before any work is done.

    Raises:
        RequestError: it is a folder, or its folder is missing or cannot be written to.
    """
    if path.is_dir():
        raise RequestError(f"output file {path} is a folder: name a file in it, such as {path / 'NAME.json'}")
    if not path.parent.is_dir():
        raise RequestError(f"cannot write {path}: make its folder {path.parent} first")
    if not os.access(path.parent, os.W_OK):
        raise RequestError(f"cannot write {path}: its folder {path.parent} cannot be written to")


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` on success and vanishes on any failure."""
    check_output_folder(path)
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
        try:
            yield temporary
            _permit_(temporary)
            if path.is_dir():
                path.rmdir()
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            for folder in missing:  # the deepest first; none is empty after a success
                with suppress(OSError):
                    folder.rmdir()


def _permit_(path: Path) -> None:
    """Give a file, or a folder with all in it, the permissions of a new one; temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    for entry in [path, *path.rglob("*")]:
        entry.chmod((0o777 if entry.is_dir() else 0o666) & ~mask)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _told(error.errno, error.strerror or str(error), path) from error
    except Exception as error:
        # safetensors has an error type of its own, with the operating system's text and number inside.
        number = _OS_ERROR.search(str(error))
        if number is None and "No space left" not in str(error):
            raise
        code = int(number[1]) if number else errno.ENOSPC
        raise _told(code, os.strerror(code), path) from error


def _told(code: int | None, reason: str, path: Path) -> RequestError:
    if code in {errno.ENOSPC, errno.EDQUOT}:
        return RequestError(f"disk full while writing {path}: free some space and run again")
    return RequestError(f"cannot write {path}: {reason}")
