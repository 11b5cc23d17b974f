"""What people call what files hold: budgets by what was asked for, blocks by number, options as given."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

from owl_compress.documents.accuracy import Score, TaskAccuracy
from owl_compress.documents.coverage import Coverage, percent
from owl_compress.documents.measurements import PerplexityRecord
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import KeptOfGrid, Unit

_ASKED_NAMES = {Unit.DENSITY: "sparsity", Unit.WIDTH: "prune ratio", Unit.BITS: "bits per weight"}


def asked_name(unit: Unit) -> str:
    """What a budget in `unit` is called where it is asked for: by what is removed, bits by what is kept."""
    return _ASKED_NAMES[unit]


def as_asked(unit: Unit, value: float) -> float:
    """A value of a plan as it is asked for: 0.7 of the weights removed where it keeps 0.3 of them."""
    return value if unit is Unit.BITS else 1 - value


def target_in_words(plan: Plan) -> str:
    """The budget of a plan as the command line takes it: "sparsity 0.7", "3:8 kept", "3 bits per weight"."""
    if isinstance(plan.grid, KeptOfGrid):
        return f"{plan.target * plan.grid.kept_of:.6g}:{plan.grid.kept_of} kept"
    shown = f"{as_asked(plan.unit, plan.target):.6g}"
    return (
        f"{shown} {asked_name(plan.unit)}" if plan.unit is Unit.BITS else f"{asked_name(plan.unit)} {shown}"
    )


def coverage_in_words(coverage: Coverage | None, n_budgeted: int) -> list[str]:
    """What of the blocks has no budget, in a line; nothing where all of it has one, or it was not counted.

    `n_budgeted` weights have one. What no budget reaches is told apart from what the user left alone.
    """
    if coverage is None or n_budgeted >= coverage.n_weights:
        return []
    skipped = coverage.n_weights - coverage.n_left_out - n_budgeted
    parts = [f"budgets cover {percent(n_budgeted / coverage.n_weights)} of the weights in the blocks"]
    if coverage.left_out:
        parts.append(f"no budget reaches {coverage.named}")
    if skipped:
        parts.append(f"skipped as asked: {percent(skipped / coverage.n_weights)}")
    return ["; ".join(parts)]


def block_numbers(names: Sequence[str]) -> tuple[list[str], str]:
    """Short names for blocks, and what stands before them all: "7" and "model.layers.".

    Names that are not one prefix and a number each stay as they are, with nothing before them.
    """
    parts = [name.rpartition(".") for name in names]
    prefixes = {head + dot for head, dot, _ in parts}
    if len(prefixes) != 1 or not all(number.isdigit() for *_, number in parts):
        return list(names), ""
    return [number for *_, number in parts], prefixes.pop()


@dataclass(frozen=True)
class Given:
    """The options of allocator and backend as users give them, by name; None where they are not known."""

    allocator: Mapping[str, Any] | None = None
    backend: Mapping[str, Any] | None = None


NOT_KNOWN = Given()


def options_in_words(given: Mapping[str, Any] | None, recorded: Mapping[str, Any]) -> str:
    """Options as users give them, or as a file has them where that is not known; switches by name alone."""
    options = recorded if given is None else given
    shown = (
        name if value is True else f"{name} = {f'{value:.6g}' if isinstance(value, float) else value}"
        for name, value in sorted(options.items())
        if value not in (None, {}, [])
    )
    return ", ".join(shown) or "no parameters"


def number_format(values: Iterable[float], digits: int = 4) -> str:
    """The format in which all of `values` have equally many decimals, and the largest so many digits."""
    largest = max((abs(value) for value in values), default=0.0)
    if largest == 0:
        return ".1f"
    magnitude = floor(log10(largest))
    return f",.{max(0, digits - 1 - magnitude)}f" if -6 <= magnitude < 9 else f".{digits - 1}e"


def size_in_words(n_bytes: int) -> str:
    """Bytes in the largest unit of which there is at least one."""
    power = max(0, min(3, (n_bytes.bit_length() - 1) // 10))
    unit = ("bytes", "KiB", "MiB", "GiB")[power]
    return f"{n_bytes / 2 ** (10 * power):,.{1 if power else 0}f} {unit}"


def seconds_in_words(seconds: float) -> str:
    """A duration as people read it: "0.8 s", "49 s", "12 min", "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def short_name(name: str) -> str:
    """The last part of a path or hub id, which tells it from others where there are few."""
    return name.rstrip("/").rpartition("/")[2] or name


def perplexity_in_words(value: float) -> str:
    """To two decimals, or as a power of ten where it is beyond all use."""
    return f"{value:,.2f}" if value < 1e6 else f"{value:.3g}"


def figure_in_words(value: float | None, digits: int = 4) -> str:
    """What was measured, be it perplexity, nats or a share: so many digits, and all before the point."""
    if value is None:
        return ""
    return f"{value:.{digits}g}" if abs(value) < 10 ** (digits - 1) else f"{value:,.0f}"


def windows_in_words(record: PerplexityRecord) -> str:
    """What a perplexity was measured over: "20 windows of 512 tokens, 10,220 of them predicted, ..."."""
    overlap = f", {record.stride:,} tokens apart" if record.stride else ""
    return (
        f"{record.windows:,} windows of {record.seq_len:,} tokens{overlap}, {record.tokens:,} of them "
        f"predicted, BOS {record.bos}, {record.dtype}"
    )


def budget_in_words(unit: Unit, value: float) -> str:
    """A value of a plan as it is asked for: sparsities to four decimals, bits to two."""
    return format(as_asked(unit, value), budget_format(unit))


def budget_format(unit: Unit) -> str:
    """The format of such a value."""
    return ".2f" if unit is Unit.BITS else ".4f"


def score_in_words(score: Score | TaskAccuracy) -> str:
    """A metric with its standard error: "0.6512 ± 0.0106"."""
    return f"{score.value:.4f}" + ("" if score.stderr is None else f" ± {score.stderr:.4f}")
