"""What seeds do to the figures of a comparison, and whether a difference is larger than that.

Cells that differ in nothing but the seed are one method. Two methods of a group are compared over the seeds
that both have, in pairs, since the same seed gives both the same calibration windows: of the differences the
mean, and Student's 95 % interval of it (n - 1 degrees of freedom). A difference is told from chance where the
interval does not hold zero. Perplexities are compared by their logarithms, so that a difference is a ratio;
accuracies as they are.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import expm1, fsum, inf, log, sqrt
from operator import attrgetter

from owl_compress.documents.comparison import Row, by_group
from owl_compress.documents.grid import varying
from owl_compress.documents.labels import label
from owl_compress.documents.measurements import LatencyRecord

_CONFIDENCE = 0.95
_SQUARED_SAFELY = 1e150
SEED = "seed"


@dataclass(frozen=True)
class Spread:
    """Of one figure over seeds; the standard deviation has n - 1 in it, and is None for a single one."""

    n: int
    mean: float
    sd: float | None
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        mean = _mean(values)
        return cls(len(values), mean, _deviation(values, mean), min(values), max(values))


@dataclass(frozen=True)
class Paired:
    """A method less another, over `n` seeds that both have.

    `difference`, `low` and `high` are of the mean: for perplexity relative (-0.1 is a tenth less), otherwise
    as the figure counts. The interval is None for a single pair, and so is `is_told_apart`.
    """

    n: int
    difference: float
    sd: float | None
    low: float | None
    high: float | None
    is_told_apart: bool | None


@dataclass(frozen=True)
class Figure:
    """Something measured of a row: how it is called, read and compared."""

    name: str
    read: Callable[[Row], float | None]
    is_ratio: bool = False
    is_larger_better: bool = False

    def compared(self, values: Mapping[int, float], others: Mapping[int, float]) -> Paired | None:
        """`values` less `others`, both by seed; None where no seed is in both."""
        common = sorted(values.keys() & others.keys())
        if not common:
            return None
        scale: Callable[[float], float] = log if self.is_ratio else float
        differences = [scale(values[seed]) - scale(others[seed]) for seed in common]
        mean = _mean(differences)
        sd = _deviation(differences, mean)
        back: Callable[[float], float] = _as_ratio if self.is_ratio else float
        if sd is None:
            return Paired(len(common), back(mean), None, None, None, None)
        reach = _quantile(len(common) - 1) * sd / sqrt(len(common))
        low, high = mean - reach, mean + reach
        return Paired(len(common), back(mean), sd, back(low), back(high), not low <= 0 <= high)


@dataclass(frozen=True)
class Method:
    """Cells of one group that differ in nothing but the seed, and what their figures come to.

    `against` holds the comparison with the baseline of the group by name of the figure; it is empty for the
    baseline itself, and where there is none.
    """

    name: str
    group: str
    rows: tuple[Row, ...]
    spreads: Mapping[str, Spread]
    against: Mapping[str, Paired]
    is_baseline: bool = False


def figures_of(rows: Iterable[Row]) -> tuple[Figure, ...]:
    """All that was measured of any of the rows: perplexities, accuracies, agreement with the dense model.

    Of several models, bits per byte as well, since perplexities of different tokenizers do not compare.
    """
    rows = list(rows)
    texts = dict.fromkeys(name for row in rows for name in row.perplexity)
    tasks = dict.fromkeys(name for row in rows for name in row.tasks)
    found = [_of_text(name) for name in texts]
    if len({str(row.recipe.get("model")) for row in rows}) > 1:
        found += [one for one in map(_of_bytes, texts) if any(one.read(row) is not None for row in rows)]
    found += [_of_task(name) for name in tasks]
    if any(row.agreement is not None for row in rows):
        found.append(Figure("KL", lambda row: row.agreement.kl if row.agreement else None))
        found.append(
            Figure("top-1", lambda row: row.agreement.top1 if row.agreement else None, is_larger_better=True)
        )
    return tuple(found)


def speeds_of(groups: Sequence[Sequence[Row]]) -> list[tuple[str, list[float | None]]]:
    """Headings of what was timed of any row, and for each of the groups its mean over those that were."""

    def mean_of(read: Callable[[LatencyRecord], float], rows: Sequence[Row]) -> float | None:
        timed = [read(row.latency) for row in rows if row.latency is not None]
        return _mean(timed) if timed else None

    found = [
        (f"{what}, tokens/s", [mean_of(attrgetter(f"{what}_tokens_per_second"), rows) for rows in groups])
        for what in ("prefill", "decode")
    ]
    return [(name, values) for name, values in found if any(value is not None for value in values)]


def _of_text(name: str) -> Figure:
    return Figure(
        f"perplexity {name}",
        lambda row: row.perplexity[name].perplexity if name in row.perplexity else None,
        is_ratio=True,
    )


def _of_bytes(name: str) -> Figure:
    return Figure(
        f"bits per byte {name}",
        lambda row: row.perplexity[name].bits_per_byte if name in row.perplexity else None,
    )


def _of_task(name: str) -> Figure:
    return Figure(
        name, lambda row: row.tasks[name].value if name in row.tasks else None, is_larger_better=True
    )


def methods_of(rows: Sequence[Row], baseline: str = "uniform") -> tuple[Method, ...]:
    """The methods among compressed rows that were measured, by group, compared with the allocator `baseline`.

    Rows that drifted spent another budget, and are compared with nobody.
    """
    figures = figures_of(rows)
    found: list[Method] = []
    for group, members in by_group(tuple(row for row in rows if row.is_measured)).items():
        by_method: dict[str, list[Row]] = {}
        for row in members:
            by_method.setdefault(_method_key(row), []).append(row)
        base = next((one for one in by_method.values() if one[0].recipe.get("allocator") == baseline), None)
        for one in by_method.values():
            others = None if base is None or one is base else base
            found.append(_method(group, one, others, figures, is_baseline=one is base))
        found[-len(by_method) :] = _renamed(found[-len(by_method) :])
    return tuple(found)


def _method(
    group: str,
    rows: Sequence[Row],
    base: Sequence[Row] | None,
    figures: Sequence[Figure],
    *,
    is_baseline: bool,
) -> Method:
    spreads, against = {}, {}
    for figure in figures:
        values = [value for row in rows if (value := figure.read(row)) is not None]
        if values:
            spreads[figure.name] = Spread.of(values)
        if base is not None:
            paired = figure.compared(_by_seed(rows, figure), _by_seed(base, figure))
            if paired is not None:
                against[figure.name] = paired
    return Method(method_name(rows[0]), group, tuple(rows), spreads, against, is_baseline)


def _renamed(methods: Sequence[Method]) -> list[Method]:
    """The methods of a group under names of what tells them apart there: "owl lam=0.1"; one alone, "owl"."""
    if len(methods) == 1:
        alone = methods[0]
        return [replace(alone, name=str(alone.rows[0].recipe.get("allocator", alone.name)))]
    axes = [method.rows[0].axes for method in methods]
    names = [name for name in varying(axes) if name != SEED]
    return [
        replace(method, name=label({name: own.get(name) for name in names}) or method.name)
        for method, own in zip(methods, axes, strict=True)
    ]


def _by_seed(rows: Sequence[Row], figure: Figure) -> dict[int, float]:
    return {
        row.seed if isinstance(row.seed, int) else 0: value
        for row in rows
        if row.status.value == "done" and (value := figure.read(row)) is not None
    }


def _method_key(row: Row) -> str:
    """All that a row was made by but the seed; rows of several grids may differ in what is no axis of any."""
    settings = {name: value for name, value in row.recipe.items() if name != "device"}
    told = [{name: one for name, one in given.items() if name != SEED} for given in (row.axes, settings)]
    return json.dumps(told, sort_keys=True)


def method_name(row: Row) -> str:
    """The name of a row without its seed."""
    if SEED not in row.axes:
        return row.name
    words = row.name.split(" ")
    return " ".join(word for word in words if not word.startswith(f"{SEED}=")) or row.group


def _mean(values: Sequence[float]) -> float:
    try:
        return fsum(values) / len(values)
    except OverflowError:  # the sum is beyond floats, the mean is not
        return fsum(value / len(values) for value in values)


def _deviation(values: Sequence[float], mean: float) -> float | None:
    if len(values) < 2:
        return None
    deviations = [value - mean for value in values]
    # A model that lost its mind has a perplexity whose square is beyond floats.
    scale = max(map(abs, deviations)) if max(map(abs, deviations)) > _SQUARED_SAFELY else 1.0
    return scale * sqrt(fsum((one / scale) ** 2 for one in deviations) / (len(values) - 1))


def _as_ratio(difference: float) -> float:
    """The relative change that a difference of logarithms stands for; inf where it is beyond floats."""
    try:
        return expm1(difference)
    except OverflowError:
        return inf


@cache
def _quantile(degrees: int) -> float:
    """Of Student's distribution, so that the interval has the confidence."""
    from scipy.stats import t  # noqa: PLC0415 - takes a second to load, and single seeds need none

    return float(t.ppf((1 + _CONFIDENCE) / 2, degrees))
