"""The table of budgets from measured damage, beside those of other allocators."""

from collections.abc import Mapping, Sequence
from statistics import mean

from layout import Row, number, section, several, table

# The rows of other benchmarks that the same target has with other allocators, OWL tuned or at its best lam.
_BESIDE = {
    "wanda 0.5": ("wanda S=0.5 uniform", "wanda S=0.5 owl lod@10 lam=0.08", ""),
    "wanda 0.6": ("wanda S=0.6 uniform", "wanda S=0.6 owl lod@10 lam=0.08", ""),
    "wanda 0.7": ("wanda S=0.7 uniform", "wanda S=0.7 owl lod@10 lam=0.08", ""),
    "sparsegpt 0.6": ("sparsegpt S=0.6 uniform", "sparsegpt S=0.6 owl lod@10 lam=0.08", ""),
    "sparsegpt 0.7": ("sparsegpt S=0.7 uniform", "sparsegpt S=0.7 owl lod@10 lam=0.08", ""),
    **{
        f"wanda N:M {nm}": (f"wanda {nm} uniform", f"wanda {nm} owl", f"wanda {nm} linear-depth")
        for nm in ("4:8", "3:8", "2:8")
    },
    "gptq 3.0, 2,3,4": ("gptq 3.0, 2,3,4 uniform group_size=64", "gptq 3.0, 2,3,4 owl group_size=64", ""),
    "gptq 3.5, 3,4": ("", "gptq 3.5, 3,4 owl group_size=64", ""),
    "rtn 3.5, 3,4": ("", "rtn 3.5, 3,4 owl group_size=64", ""),
    **{
        f"structured {ratio}": (
            f"structured {ratio} uniform importance=wanda repair=True",
            f"structured {ratio} owl importance=wanda repair=True high=1.0",
            f"structured {ratio} linear-depth importance=wanda repair=True",
        )
        for ratio in (0.2, 0.4, 0.6)
    },
}
_TEXT = (
    "Perplexity of budgets from measured damage (KL on 4 windows of 128 tokens held apart from the "
    "calibration windows; blocks for densities and N:M, tied linears for bits, sublayers for widths, which "
    "are repaired) beside those of other allocators on the same calibration windows. Seed 0 has the windows "
    "of the sections below, every other seed draws its own; of several seeds, mean and range. *Ratio* is "
    "sensitivity over uniform, in pairs of equal seeds. *Damages* is the sum of the single damages over the "
    "damage measured of the whole plan, of the first seed. (`sensitivity.py`)"
)

ByMethod = dict[str, dict[int, Row]]


def damage_section(rows: Sequence[Row], known: Mapping[str, float]) -> str:
    """The section, of the `rows` of the benchmark and the perplexities that are `known` from others."""
    measured: dict[str, ByMethod] = {target: {} for target in _BESIDE}
    for row in rows:
        if row.get("perplexity"):
            target, _, method = row["name"].rpartition(" ")
            measured.setdefault(target, {}).setdefault(method, {})[row["seed"]] = row
    cells = [_cells(target, methods, known) for target, methods in measured.items() if methods]
    header = (
        "target", "seeds", "uniform", "owl", "linear-depth", "sensitivity", "ratio", "refined", "damages",
    )  # fmt: skip
    return section("Budgets from measured damage", _TEXT, table(header, cells)) if cells else ""


def _cells(target: str, methods: ByMethod, known: Mapping[str, float]) -> list[str]:
    names = dict(zip(("uniform", "owl", "linear-depth"), _BESIDE.get(target, ("", "", "")), strict=True))
    others = {method: _with_known(methods.get(method, {}), known.get(name)) for method, name in names.items()}
    own = _perplexities(methods.get("sensitivity", {}))
    ratios = [own[seed] / uniform for seed, uniform in others["uniform"].items() if seed in own]
    refined = _perplexities(methods.get("refine", {}))
    first = next((row for _, row in sorted(methods.get("sensitivity", {}).items())), None)
    return [
        target,
        str(len(own)),
        *(several([*figures.values()]) for figures in others.values()),
        several([*own.values()]),
        number(mean(ratios)) if ratios else "–",
        several([*refined.values()]),
        f"{first['predicted_damage']:.3g} / {first['damage']:.3g}" if first else "–",
    ]


def _with_known(rows: Mapping[int, Row], known: float | None) -> dict[int, float]:
    """Perplexities by seed; what is known from other benchmarks is of seed 0."""
    return ({} if known is None else {0: known}) | _perplexities(rows)


def _perplexities(rows: Mapping[int, Row]) -> dict[int, float]:
    return {seed: row["perplexity"] for seed, row in rows.items()}
