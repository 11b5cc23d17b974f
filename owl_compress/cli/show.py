"""What a file or folder of ours says, on the terminal; and what differs between two."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from owl_compress.cli import options
from owl_compress.cli.comparison_sheets import rows_sheet
from owl_compress.cli.console import Output
from owl_compress.cli.damage_tables import sensitivity_table
from owl_compress.cli.difference_sheets import difference_sheets
from owl_compress.cli.recovery_table import recovery_table
from owl_compress.cli.sheet import Sheet
from owl_compress.cli.sparklines import sparkline_note
from owl_compress.cli.tables import plan_table, report_table, result_table
from owl_compress.cli.tune import tuning_table
from owl_compress.documents.compared import is_comparison, read_comparison
from owl_compress.documents.differences import KINDS, Difference, differences
from owl_compress.documents.document import Document
from owl_compress.documents.findings import Findings, Found, read_findings
from owl_compress.documents.result import Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.pages.words import as_asked, asked_name

_MOST_METRICS = 4


def show(
    file: Annotated[
        Path,
        options.path_argument("FILE", "Report, profile, plan, result, tuning, or a folder of ours."),
    ],
    other: Annotated[
        Path | None, options.path_argument("OTHER", "Another of the kind: show what differs.")
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Print what a file or a folder of ours says; of two, what differs and what cannot be compared."""
    output = Output(as_json=as_json, quiet=quiet)
    if other is not None:
        _show_two(file, other, output)
    elif is_comparison(file):
        comparison = read_comparison(file)
        rows = [row.model_dump(mode="json") for row in comparison.rows]
        output.answer(rows, rows_sheet(comparison.rows, comparison.baseline))
    else:
        findings = read_findings([file])
        output.answer({one.path.name: _content(one) for one in findings.files})
        for sheet in _sheets(findings):
            output.show(sheet)


def _content(found: Found) -> dict[str, Any]:
    document: Document = found.document
    return document.model_dump(mode="json")


def _sheets(findings: Findings) -> Iterator[Sheet]:
    """A table for each document, with a line of blocks below it; a plan and its result are one."""
    if findings.report:
        report, names = findings.report, list(findings.report.blocks[0].metrics)[:_MOST_METRICS]
        longest = max(map(len, names))
        lines = [
            sparkline_note(f"{name:<{longest}}", [block.metrics.get(name) for block in report.blocks])
            for name in names
        ]
        yield _with_notes(report_table(report), lines)
    if findings.tuning:
        yield tuning_table(findings.tuning)
    if findings.profile:
        yield _with_notes(sensitivity_table(findings.profile), [_worst(findings.profile)])
    for name, plan in findings.plans.items():
        values = [as_asked(plan.unit, block.value) for block in plan.per_block]
        line = sparkline_note(asked_name(plan.unit), values)
        yield _with_notes(plan_table(plan, findings.results.get(name)), [line])
    for result in findings.results.values():
        yield _with_notes(result_table(result), [_errors(result)])
        if result.recoveries:
            yield recovery_table(result)


def _with_notes(sheet: Sheet, lines: Sequence[str]) -> Sheet:
    return replace(sheet, notes=(*sheet.notes, *(line for line in lines if line)))


def _worst(profile: SensitivityProfile) -> str:
    """Damage at the lowest level, added up over the parts of each block."""
    blocks = dict.fromkeys(profile.blocks, 0.0)
    for part in profile.parts:
        blocks[part.block] += part.damage[0]
    levels = {min(part.levels) for part in profile.parts}
    shown = f"{min(levels):.3g}" if len(levels) == 1 else "the lowest level"
    kept = "bits" if profile.unit is Unit.BITS else "kept"
    return sparkline_note(f"damage of each block at {shown} {kept}", list(blocks.values()))


def _errors(result: Result) -> str:
    """Relative error of each linear, in the order of execution."""
    blocks: dict[str, list[float]] = {}
    for one in result.budgets:
        blocks.setdefault(one.block, []).append(one.relative_error)
    return sparkline_note("largest error of each block", [max(errors) for errors in blocks.values()])


def _show_two(file: Path, other: Path, output: Output) -> None:
    names = (file.name, other.name) if file.name != other.name else (str(file), str(other))
    compared = next((path for path in (file, other) if is_comparison(path)), None)
    if compared is not None:
        raise RequestError(f"{compared} is a comparison, which has its methods side by side: show it alone")
    found, only = _common(file, other)
    told = {"files": [str(file), str(other)], "differences": [_told(one) for one in found]}
    output.answer({**told, "only_in_one": only})
    for difference in found:
        for sheet in difference_sheets(difference, names):
            output.show(sheet)
    for line in only:
        output.say(line)


def _common(file: Path, other: Path) -> tuple[list[Difference], list[str]]:
    """The differences of all kinds that are in both, and what is in one alone."""
    mine, theirs = (_by_kind(path) for path in (file, other))
    if not mine.keys() & theirs.keys():
        raise RequestError(
            f"{file} ({_kinds(mine)}) and {other} ({_kinds(theirs)}) cannot be compared: name two of a kind"
        )
    found = [differences(mine[kind], theirs[kind]) for kind in mine if kind in theirs]
    only = [f"only {file} holds a {kind}" for kind in mine if kind not in theirs]
    return found, [*only, *(f"only {other} holds a {kind}" for kind in theirs if kind not in mine)]


def _by_kind(path: Path) -> dict[str, Any]:
    """The documents by their kinds, of which a folder may hold one each."""
    found: dict[str, Any] = {}
    for one in read_findings([path]).files:
        kind = KINDS[type(one.document)]
        if kind in found:
            raise RequestError(f"{path} holds several {kind}s: name one of them, such as {one.path}")
        found[kind] = one.document
    return found


def _kinds(found: dict[str, Any]) -> str:
    return ", ".join(found)


def _told(difference: Difference) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "kind": difference.kind,
        "fields": {name: list(pair) for name, pair in difference.fields.items()},
        "moved": difference.moved,
        "not_comparable": list(difference.not_comparable),
        "quantities": [
            {
                "name": one.name,
                "of": one.of,
                "rank_correlation": one.rank_correlation,
                "rows": [{"name": name, "first": a, "second": b} for name, (a, b) in one.rows.items()],
            }
            for one in difference.quantities
        ],
    }
