"""Plans to and from other tools: the tables of tools, and both directions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.strict_json import read_text
from owl_compress.errors import RequestError
from owl_compress.exports import EXPORTERS, IMPORTERS, Exported, export, plan_from

__all__ = ["EXPORTERS", "IMPORTERS", "exported", "imported"]


def exported(plan: Plan, tool: str, options: Mapping[str, Any] | None = None) -> Exported:
    """The plan in the words of the tool that is registered under a name.

    Raises:
        RequestError: an unknown tool or option, a unit or a value that the tool does not take.
    """
    return export(plan, EXPORTERS.create(tool, options))


def imported(
    file: Path, tool: str, report: ImportanceReport, options: Mapping[str, Any] | None = None
) -> Plan:
    """The plan that a file of another tool stands for, over the linears of a report.

    Raises:
        RequestError: an unknown tool or option, an unreadable file, or one that no plan can be made of.
    """
    importer = IMPORTERS.create(tool, options)
    try:
        text = read_text(file)
    except ValueError as error:  # no text
        raise RequestError(f"{file}: {error}") from error
    try:
        return plan_from(text, importer, report)
    except RequestError as error:
        raise RequestError(f"{file}: {error}") from error
