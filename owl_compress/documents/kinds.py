"""A file of ours whose kind is not known beforehand: report, profile, plan, result, or what tuning tried."""

import re
from pathlib import Path

from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.strict_json import read_json, read_text
from owl_compress.documents.tuning import TuningDocument
from owl_compress.errors import RequestError

AnyDocument = ImportanceReport | SensitivityProfile | Plan | Result | TuningDocument

_KINDS: dict[str, type[AnyDocument]] = {
    kind.SCHEMA.rpartition("/")[0]: kind
    for kind in (ImportanceReport, SensitivityProfile, Plan, Result, TuningDocument)
}
_SCHEMA = re.compile(r'"schema"\s*:\s*"(owl-compress/[\w-]+)/\d+"')


def read_document(path: Path) -> AnyDocument:
    """Read the report, sensitivity profile, plan, result or account of a tuning at `path`.

    Raises:
        RequestError: unreadable, none of these, or with invalid content.
    """
    try:
        found = _SCHEMA.search(read_text(path))
    except ValueError as error:  # no text
        raise RequestError(f"{path} is no report, plan or result of ours: {error}") from error
    kind = _KINDS.get(found[1]) if found else None
    if kind is None:
        named = f"its schema is {found[1]}" if found else "it names no schema"
        raise RequestError(
            f"{path} is no report, plan or result of ours ({named}): name a file that measure, allocate, "
            "compress or run wrote"
        )
    return kind.read(path)


def read_source(path: Path) -> ImportanceReport | SensitivityProfile:
    """Read what budgets are made from.

    Raises:
        RequestError: unreadable, neither a report nor a sensitivity profile, or with invalid content.
    """
    try:
        text = read_text(path)
    except (RequestError, ValueError):
        return ImportanceReport.read(path)  # says what is wrong
    found = _SCHEMA.search(text)
    kind = _KINDS.get(found[1]) if found else None
    if kind is SensitivityProfile:
        return SensitivityProfile.read(path)
    if kind is not ImportanceReport:
        read_json(path)  # says what is wrong with a file that is cut short, or is no JSON
        named = f"its schema is {found[1]}" if found else "it names no schema of ours"
        raise RequestError(
            f"{path} is neither a report nor a sensitivity profile ({named}): name a file that measure or "
            "sensitivity wrote"
        )
    return ImportanceReport.read(path)
