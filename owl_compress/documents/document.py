"""JSON documents with a schema version: read, checked, written, and known by their fingerprint."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from owl_compress.arguments import checked
from owl_compress.documents.disk import write_text
from owl_compress.documents.paths import given_path
from owl_compress.documents.strict_json import read_json
from owl_compress.errors import RequestError, first_problem, shown

# Only the layout of JSON has line breaks, never a string in it: what a string says stays as it is.
_NUMBER_LIST = re.compile(r"\[\n\s*(-?\d[-\d.eE+,\s]*?)\n\s*\]")


_VERSION = re.compile("[0-9]{1,9}")


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

    @checked
    def write(self, path: Path | str) -> None:
        """Write the document to `path`, whole or not at all."""
        write_text(given_path(path), self.to_json())

    @classmethod
    @checked
    def read(cls, path: Path | str) -> Self:
        """Read and validate the document at `path`.

        Raises:
            RequestError: unreadable, not JSON, of another kind, of a newer version, or with invalid content.
        """
        path = given_path(path)
        content = read_json(path)
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
        if found_kind == kind and _VERSION.fullmatch(found_version) and int(found_version) > int(version):
            raise RequestError(
                f"{path} has schema {found}, newer than {cls.SCHEMA} which this version reads: "
                "upgrade owl-compress"
            )
        raise RequestError(
            f"{path} has schema {shown(found)}, expected {cls.SCHEMA!r}: this is another kind of file"
        )


def is_none(value: object) -> bool:
    """Whether an optional field that came later is left out of a file: the fingerprints of old ones stay."""
    return value is None
