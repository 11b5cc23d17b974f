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
        return plan_from(read_text(file), importer, report)
    except (RequestError, ValueError) as error:
        told = str(error)
        raise RequestError(told if told.startswith("cannot read") else f"{file}: {told}") from error
