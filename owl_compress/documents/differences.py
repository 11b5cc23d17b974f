"""What differs between two documents of one kind, and what of them cannot be compared."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import fsum
from typing import Any

from pydantic import JsonValue

from owl_compress.documents.kinds import AnyDocument
from owl_compress.documents.means import block_means
from owl_compress.documents.plan import LinearBudget, Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import LinearResult, Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.tuning import TuningDocument
from owl_compress.errors import RequestError

Pair = tuple[float | None, float | None]
"""A number of the first and of the second; None where only the other has it."""

KINDS: dict[type[AnyDocument], str] = {
    ImportanceReport: "report",
    SensitivityProfile: "sensitivity profile",
    Plan: "plan",
    Result: "result",
    TuningDocument: "tuning",
}
_PREFERRED = "lod@5"


@dataclass(frozen=True)
class Quantity:
    """A number of every block, or part, of two documents.

    Attributes:
        name: what it is.
        of: what the rows are: "block" or "part".
        rows: by the name of the block or part, in the order of the first document.
    """

    name: str
    of: str
    rows: Mapping[str, Pair]

    @property
    def common(self) -> list[tuple[float, float]]:
        """The numbers that both have."""
        return [(one, other) for one, other in self.rows.values() if one is not None and other is not None]

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's; None for fewer than three rows, or where one document has the same in all of them."""
        pairs = self.common
        ends = [(min(row), max(row)) for row in zip(*pairs, strict=True)]
        if len(pairs) < 3 or any(low == high for low, high in ends):
            return None
        from scipy.stats import spearmanr  # noqa: PLC0415 - takes a second to load

        return float(spearmanr([one for one, _ in pairs], [other for _, other in pairs]).statistic)


@dataclass(frozen=True)
class Difference:
    """Two documents of one kind beside each other.

    Attributes:
        kind: what both are.
        fields: values that are not the same, by their names; those of the first and of the second.
        quantities: numbers by block or part, in the order in which they are worth looking at.
        moved: of two plans, the share of the budget that the one gives to other weights than the other.
        not_comparable: what cannot be compared, and why.
    """

    kind: str
    fields: Mapping[str, tuple[JsonValue, JsonValue]]
    quantities: tuple[Quantity, ...]
    moved: float | None = None
    not_comparable: tuple[str, ...] = ()


def differences(one: AnyDocument, other: AnyDocument) -> Difference:
    """What differs between two documents.

    Raises:
        RequestError: they are of two kinds, or accounts of tunings, which are read one by one.
    """
    if isinstance(one, Plan) and isinstance(other, Plan):
        return _of_plans(one, other)
    if isinstance(one, ImportanceReport) and isinstance(other, ImportanceReport):
        return _of_reports(one, other)
    if isinstance(one, Result) and isinstance(other, Result):
        return _of_results(one, other)
    if isinstance(one, SensitivityProfile) and isinstance(other, SensitivityProfile):
        return _of_profiles(one, other)
    kinds = KINDS[type(one)], KINDS[type(other)]
    remedy = "name two of a kind" if kinds[0] != kinds[1] else "show each alone, or compare their plans"
    raise RequestError(f"a {kinds[0]} and a {kinds[1]} cannot be compared: {remedy}")


def _of_plans(one: Plan, other: Plan) -> Difference:
    fields = _fields(one, other, leaving_out={"budgets", "schema", "coverage"})
    if one.unit is not other.unit:
        told = f"budgets in {one.unit} and in {other.unit}"
        return Difference("plan", fields, (), not_comparable=(told,))
    sizes = _sizes(one.budgets), _sizes(other.budgets)
    notes = _of_linears(*sizes)
    if _are_of_two_models(*sizes):  # blocks of equal names are others: figures side by side would mislead
        return Difference("plan", fields, (), not_comparable=tuple(notes))
    rows = _paired(
        {block.name: block.value for block in one.per_block},
        {block.name: block.value for block in other.per_block},
    )
    return Difference(
        "plan", fields, _there(Quantity(str(one.unit), "block", rows)), _moved(one, other), tuple(notes)
    )


def _moved(one: Plan, other: Plan) -> float | None:
    """Half of the sum of what linears get more or less, as a share of the sum of all budgets."""
    theirs = {budget.name: budget.value for budget in other.budgets}
    common = [budget for budget in one.budgets if budget.name in theirs]
    spent = fsum(budget.n_weights * budget.value for budget in common)
    if not spent:
        return None
    return fsum(abs(b.value - theirs[b.name]) * b.n_weights for b in common) / (2 * spent)


def _of_reports(one: ImportanceReport, other: ImportanceReport) -> Difference:
    fields = _fields(one, other, leaving_out={"blocks", "schema", "coverage"})
    names = [name for name in one.blocks[0].metrics if name in other.blocks[0].metrics]
    names.sort(key=lambda name: name != _PREFERRED)
    quantities = [
        Quantity(name, "block", _paired(_metrics(one, name), _metrics(other, name))) for name in names
    ]
    only = sorted(set(one.blocks[0].metrics) ^ set(other.blocks[0].metrics))
    notes = [f"only one of the reports has {', '.join(only)}"] if only else []
    sizes = [
        {linear.name: linear.n_weights for block in report.blocks for linear in block.linears}
        for report in (one, other)
    ]
    notes += _of_linears(*sizes)
    quantities = [] if _are_of_two_models(*sizes) else quantities
    return Difference("report", fields, _there(*quantities), not_comparable=tuple(notes))


def _metrics(report: ImportanceReport, name: str) -> dict[str, float]:
    return {block.name: block.metrics[name] for block in report.blocks if name in block.metrics}


def _of_results(one: Result, other: Result) -> Difference:
    fields = _fields(one, other, leaving_out={"budgets", "schema", "coverage"})
    unit, theirs = one.budgets[0].unit, other.budgets[0].unit
    sizes = _sizes(one.budgets), _sizes(other.budgets)
    notes = _of_linears(*sizes)
    if _are_of_two_models(*sizes):
        return Difference("result", fields, (), not_comparable=tuple(notes))
    quantities = [Quantity("relative error", "block", _by_block(one, other, lambda row: row.relative_error))]
    if unit is theirs:
        quantities.insert(0, Quantity(str(unit), "block", _by_block(one, other, lambda row: row.achieved)))
    else:
        notes.append(f"budgets in {unit} and in {theirs}")
    if one.error_measure != other.error_measure:
        quantities = [quantity for quantity in quantities if quantity.name != "relative error"]
        notes.append("relative errors, which the two backends measure differently")
    return Difference("result", fields, _there(*quantities), not_comparable=tuple(notes))


def _by_block(one: Result, other: Result, read: Callable[[LinearResult], float]) -> dict[str, Pair]:
    return _paired(block_means(one.budgets, read), block_means(other.budgets, read))


def _of_profiles(one: SensitivityProfile, other: SensitivityProfile) -> Difference:
    fields = _fields(one, other, leaving_out={"parts", "linears", "schema", "coverage"})
    if one.unit is not other.unit or one.measure is not other.measure:
        told = f"damage by {one.measure} in {one.unit} and by {other.measure} in {other.unit}"
        return Difference("sensitivity profile", fields, (), not_comparable=(told,))
    first, second = (
        {part.name: dict(zip(part.levels, part.damage, strict=True)) for part in profile.parts}
        for profile in (one, other)
    )
    ours, theirs = (set[float]().union(*curves.values()) for curves in (first, second))
    levels, single = sorted(ours & theirs), sorted(ours ^ theirs)
    notes = [] if levels else ["damage at levels of which none is in both"]
    if levels and single:
        notes.append(f"damage at {', '.join(f'{level:.4g}' for level in single)}, which only one has")
    quantities = (
        Quantity(f"damage at {level:.4g}", "part", _paired(_at(level, first), _at(level, second)))
        for level in levels
    )
    return Difference("sensitivity profile", fields, _there(*quantities), not_comparable=tuple(notes))


def _at(level: float, curves: Mapping[str, Mapping[float, float]]) -> dict[str, float]:
    """Damage at one level, of the parts that have it."""
    return {name: curve[level] for name, curve in curves.items() if level in curve}


def _there(*quantities: Quantity) -> tuple[Quantity, ...]:
    """Those of which there is something in both."""
    return tuple(quantity for quantity in quantities if quantity.common)


def _paired(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, Pair]:
    return {name: (one.get(name), other.get(name)) for name in dict.fromkeys((*one, *other))}


def _sizes(budgets: Iterable[LinearBudget | LinearResult]) -> dict[str, int]:
    return {budget.name: budget.n_weights for budget in budgets}


def _of_linears(one: Mapping[str, int], other: Mapping[str, int]) -> list[str]:
    """What keeps linears of the two from being compared."""
    common = one.keys() & other.keys()
    if not common:
        return ["blocks and linears, which have no name in common: they are of two models"]
    notes = [
        f"{len(mine - common)} linears that only the {which} has, such as {min(mine - common)}"
        for which, mine in (("first", one.keys()), ("second", other.keys()))
        if mine - common
    ]
    off = sorted(name for name in common if one[name] != other[name])
    return [*notes, *([f"{len(off)} linears of other sizes, such as {off[0]}"] if off else [])]


def _are_of_two_models(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether linears have no name in common, or a size of their own by a name that both have."""
    common = one.keys() & other.keys()
    return not common or any(one[name] != other[name] for name in common)


def _fields(
    one: AnyDocument, other: AnyDocument, leaving_out: set[str]
) -> dict[str, tuple[JsonValue, JsonValue]]:
    """Values that are not the same, by their names with dots between."""
    mine, theirs = (dict(_flat(document.model_dump(mode="json"))) for document in (one, other))
    return {
        name: (mine.get(name), theirs.get(name))
        for name in dict.fromkeys((*mine, *theirs))
        if name.partition(".")[0] not in leaving_out and mine.get(name) != theirs.get(name)
    }


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, JsonValue]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
