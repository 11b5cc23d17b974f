"""The table of budgets from measured damage, beside those of other allocators."""

from collections.abc import Mapping, Sequence
from statistics import mean

from layout import Row, number, section, several, table

_OTHERS = ("uniform", "owl", "linear-depth", "alpha", "lsa")


def _density(backend: str, share: float) -> dict[str, str]:
    names = {"owl": "owl lod@10 lam=0.08"}
    return {method: f"{backend} S={share} {names.get(method, method)}" for method in _OTHERS}


def _structured(ratio: float) -> dict[str, str]:
    rest = "importance=wanda repair=True"
    bounds = {"owl": " high=1.0"}
    return {method: f"structured {ratio} {method} {rest}{bounds.get(method, '')}" for method in _OTHERS}


# What rows of other benchmarks are called, OWL tuned or at its best lam, by target and allocator.
_BESIDE: dict[str, Mapping[str, str]] = {
    **{f"wanda {share}": _density("wanda", share) for share in (0.5, 0.6, 0.7)},
    **{f"sparsegpt {share}": _density("sparsegpt", share) for share in (0.6, 0.7)},
    **{
        f"wanda N:M {nm}": {method: f"wanda {nm} {method}" for method in _OTHERS}
        for nm in ("4:8", "3:8", "2:8")
    },
    **{
        f"{backend} {bits}": {method: f"{backend} {bits} {method} group_size=64" for method in _OTHERS}
        for backend, bits in (
            ("gptq", "3.0, 2,3,4"), ("gptq", "3.5, 3,4"), ("gptq", "2.5, 2,3,4"), ("rtn", "3.5, 3,4"),
        )
    },
    **{f"structured {ratio}": _structured(ratio) for ratio in (0.2, 0.4, 0.6)},
}  # fmt: skip
_TEXT = (
    "Perplexity of budgets from measured damage (KL on 4 windows of 128 tokens held apart from the "
    "calibration windows; blocks for densities and N:M, tied linears for bits, sublayers for widths, which "
    "are repaired) beside those of other allocators on the same calibration windows. Seed 0 has the windows "
    "of the sections below, every other seed draws its own; of several seeds, mean and range, and what has "
    "no range is of seed 0. *Refined* is `refine` from that plan at the cost of the profile, *evo* is "
    "`refine --method evo` from equal shares at ten times that. *Ratio* is sensitivity over uniform, in "
    "pairs of equal seeds. *Damages* is the sum of the single damages over the "
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
    header = ("target", "seeds", *_OTHERS, "sensitivity", "ratio", "refined", "evo", "damages")
    known_of = [place for place in range(len(header)) if any(row[place] != "–" for row in cells)]
    shown = [[row[place] for place in known_of] for row in cells]
    heads = [header[place] for place in known_of]
    return section("Budgets from measured damage", _TEXT, table(heads, shown)) if cells else ""


def _cells(target: str, methods: ByMethod, known: Mapping[str, float]) -> list[str]:
    beside = _BESIDE.get(target, {})
    others = {
        method: _with_known(methods.get(method, {}), known.get(beside.get(method, ""))) for method in _OTHERS
    }
    own, refined, evolved = (
        _perplexities(methods.get(method, {})) for method in ("sensitivity", "refine", "evo")
    )
    ratios = [own[seed] / uniform for seed, uniform in others["uniform"].items() if seed in own]
    first = next((row for _, row in sorted(methods.get("sensitivity", {}).items())), None)
    return [
        target,
        str(len(own)),
        *(several([*figures.values()]) for figures in others.values()),
        several([*own.values()]),
        number(mean(ratios)) if ratios else "–",
        several([*refined.values()]),
        several([*evolved.values()]),
        f"{first['predicted_damage']:.3g} / {first['damage']:.3g}" if first else "–",
    ]


def _with_known(rows: Mapping[int, Row], known: float | None) -> dict[int, float]:
    """Perplexities by seed; what is known from other benchmarks is of seed 0."""
    return ({} if known is None else {0: known}) | _perplexities(rows)


def _perplexities(rows: Mapping[int, Row]) -> dict[int, float]:
    return {seed: row["perplexity"] for seed, row in rows.items()}
